//! One spelling for expressions that are no numbers, so that they can be compared as text.
//!
//! `x^{2}+1` becomes `x^2+1`, `\frac{a}{b}` becomes `a/b`, and case, spaces, dollar signs and emphasis vanish where they
//! change nothing. Brackets are set wherever leaving them out would change a value: `\frac{a}{bc}` is `a/(bc)`.
//! Nothing is computed: `x+1` and `1+x` differ.

/// Groups are read no deeper than this: keeps the pass linear in the text, and the stack small.
const DEPTH: usize = 40;

/// Rewrites a text in plain spelling; empty if the text says nothing.
pub(super) fn canonical(plain: &str) -> String {
    let text = quoted(plain.trim());
    let mut parser = Parser { text, at: 0 };
    let mut out = parser.group(0);
    while let Some(c @ ('.' | ',' | ';' | '!')) = out.chars().next_back() {
        // A mark behind a word ends a sentence; behind anything else it is a factorial.
        let word = out.bytes().rev().skip(1).take_while(u8::is_ascii_alphabetic).count();
        if c == '!' && word < 3 {
            break;
        }
        out.pop();
    }
    // A choice is the same with and without its brackets.
    let letter = out.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    letter.filter(|letter| letter.len() == 1).map(str::to_owned).unwrap_or(out)
}

/// A text without the quotes around it.
fn quoted(text: &str) -> &str {
    let inner = |quote| text.strip_prefix(quote).and_then(|text: &str| text.strip_suffix(quote));
    ['"', '\'', '`'].into_iter().find_map(inner).unwrap_or(text)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(is_nothing) {
            self.next();
        }
    }

    /// Reads to the end of a group, the brace included.
    fn group(&mut self, depth: usize) -> String {
        let mut out = String::new();
        while let Some(c) = self.next() {
            match c {
                '}' if depth > 0 => break,
                '{' if depth < DEPTH => {
                    let inner = self.group(depth + 1);
                    push_argument(&inner, &mut out);
                }
                '^' | '_' => {
                    out.push(c);
                    let argument = self.argument(depth, true);
                    push_argument(&argument, &mut out);
                }
                '\\' => self.command(depth, &mut out),
                '*' => self.product(&mut out),
                '<' | '>' | '!' if self.peek() == Some('=') => {
                    self.next();
                    out.push(match c {
                        '<' => '≤',
                        '>' => '≥',
                        _ => '≠',
                    });
                }
                c if is_nothing(c) => {
                    self.spaces();
                    // `1 2` is not 12.
                    if ends_in_digit(&out) && self.peek().is_some_and(|c| c.is_ascii_digit()) {
                        out.push(' ');
                    }
                }
                c => push(c, &mut out),
            }
        }
        out
    }

    /// A product's sign counts between digits alone: `2*x` is `2x`, and `2*3` is not 23. Two asterisks are a power.
    fn product(&mut self, out: &mut String) {
        let mut stars = 1;
        while let Some(c) = self.peek().filter(|c| *c == '*' || is_nothing(*c)) {
            stars += usize::from(c == '*');
            self.next();
        }
        if !out.is_empty() && self.peek().is_some_and(|c| c.is_ascii_digit() || stars == 2 && c.is_alphabetic()) {
            let digit = ends_in_digit(out);
            match stars {
                1 if digit => out.push('*'),
                2 if out.ends_with(|c: char| c.is_alphanumeric() || c == ')') => out.push('^'),
                _ => {}
            }
        }
    }

    /// Reads a command whose backslash has been read.
    fn command(&mut self, depth: usize, out: &mut String) {
        let rest = &self.text[self.at..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let name = &rest[..letters];
        self.at += letters;
        match name {
            "frac" if depth < DEPTH => {
                let above = self.argument(depth, false);
                let below = self.argument(depth, false);
                self.fraction(&above, &below, out);
            }
            "sqrt" if depth < DEPTH => {
                out.push_str("\\sqrt");
                if self.peek() != Some('[') {
                    let argument = self.argument(depth, true);
                    push_argument(&argument, out);
                }
            }
            "" => {
                out.push('\\');
                out.extend(self.next());
            }
            name => {
                out.push('\\');
                out.push_str(name);
                self.spaces();
                // Else the name would run into the letters behind it.
                if self.peek().is_some_and(char::is_alphabetic) {
                    out.push(' ');
                }
            }
        }
    }

    /// Reads what a command, a power or a subscript applies to: a group, a command, or a character; or a whole number,
    /// where `whole` says so.
    fn argument(&mut self, depth: usize, whole: bool) -> String {
        self.spaces();
        let mut out = String::new();
        if depth >= DEPTH || self.peek() == Some('}') {
            return out;
        }
        match self.next() {
            Some('{') => return self.group(depth + 1),
            Some('\\') => self.command(depth + 1, &mut out),
            Some(c) => {
                push(c, &mut out);
                let number = whole && (c.is_ascii_digit() || c == '-');
                while let Some(digit) = self.peek().filter(|c| number && c.is_ascii_digit()) {
                    out.push(digit);
                    self.next();
                }
            }
            None => {}
        }
        out
    }

    fn fraction(&mut self, above: &str, below: &str, out: &mut String) {
        let negative = out.is_empty() && above.starts_with('-');
        let above = if negative { &above[1..] } else { above };
        let factors =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '^'));
        let atom = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.chars().count() == 1 || digits && !text.is_empty()
        };
        let above = if factors(above) { above.to_owned() } else { format!("({above})") };
        let below = if atom(below) { below.to_owned() } else { format!("({below})") };
        self.spaces();
        let joined = self.peek().is_some_and(|c| c == '^' || c.is_ascii_digit() || c == '/');
        let joins = ends_in_digit(out) && above.starts_with(|c: char| c.is_ascii_digit()) || out.ends_with('/');
        out.push_str(if negative { "-" } else { "" });
        let (open, close) = if joined || joins { ("(", ")") } else { ("", "") };
        out.extend([open, &above, "/", &below, close]);
    }
}

fn push(c: char, out: &mut String) {
    if !is_nothing(c) {
        out.extend(c.to_lowercase());
    }
}

/// Adds a group: a single character needs no braces, and an empty group is none.
fn push_argument(argument: &str, out: &mut String) {
    match argument.chars().count() {
        0 => {}
        1 if out.ends_with('^') || out.ends_with('_') || out.ends_with("\\sqrt") => out.push_str(argument),
        1 if !ends_in_digit(out) && !out.ends_with(|c: char| c.is_alphabetic()) => out.push_str(argument),
        _ => {
            out.push('{');
            out.push_str(argument);
            out.push('}');
        }
    }
}

fn ends_in_digit(text: &str) -> bool {
    text.ends_with(|c: char| c.is_ascii_digit())
}

/// Returns true for spaces and marks that change no answer.
fn is_nothing(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '$' | '"' | '`')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_an_expression_become_one() {
        for (text, expected) in [
            ("x^{2} + 1", "x^2+1"),
            ("x^{10}", "x^{10}"),
            ("x^10", "x^{10}"),
            ("\\frac{a}{b}", "a/b"),
            ("\\frac ab", "a/b"),
            ("\\frac{a}{bc}", "a/(bc)"),
            ("\\frac{x+1}{2}", "(x+1)/2"),
            ("-\\frac{a}{b}", "-a/b"),
            ("\\frac{-a}{b}", "-a/b"),
            ("\\frac{a}{b}^2", "(a/b)^2"),
            ("x^\\frac{a}{b}", "x^{a/b}"),
            ("a/\\frac{b}{c}", "a/(b/c)"),
            ("2\\frac{1}{2}x", "2(1/2)x"),
            ("\\sqrt{x}", "\\sqrtx"),
            ("\\sqrt x", "\\sqrtx"),
            ("2*x", "2x"),
            ("2*3", "2*3"),
            ("2**3", "2^3"),
            ("1 2", "1 2"),
            ("x <= 3", "x≤3"),
            ("**Paris**.", "paris"),
            ("Paris!", "paris"),
            ("n!", "n!"),
            ("f'(x)", "f'(x)"),
            ("(B)", "b"),
            ("{}", ""),
            ("\\{1\\}", "\\{1\\}"),
            ("a}b", "a}b"),
        ] {
            assert_eq!(canonical(text), expected, "{text:?}");
        }
    }

    #[test]
    fn deep_groups_do_not_overflow() {
        canonical(&"{".repeat(100_000));
        canonical(&"\\frac".repeat(100_000));
        canonical(&"x^".repeat(100_000));
    }
}
