//! One spelling for numbers that are written in many: LaTeX and Unicode become plain text for the number grammar.

/// A thin space, which may separate thousands as a comma does.
pub(super) const THIN: char = '\u{1f}';

/// No text command's argument is looked for further than this, in bytes: keeps the pass linear in the text.
const REACH: usize = 400;

/// Rewrites the spellings of minus signs, digits, fractions, roots, powers, products, degrees, currencies and spaces.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            '\\' => command(&rest[1..], &mut out),
            '⁰' | '¹' | '²' | '³' | '⁴'..='⁹' | '⁻' => superscript(rest, &mut out),
            _ => {
                character(c, &mut out);
                &rest[c.len_utf8()..]
            }
        };
    }
    // Braces keep LaTeX from setting a space behind a comma: `1{,}000`.
    let out = if out.contains("{,}") { thousands(&out) } else { out };
    if out.contains("{:}") { out.replace("{:}", ":") } else { out }
}

/// Rewrites `1{,}000` with a thin space, which is no separator in brackets; `{,}` elsewhere is a comma.
fn thousands(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{,}") {
        out.push_str(before);
        out.push(if before.ends_with(|c: char| c.is_ascii_digit()) && starts_thousand(after) { THIN } else { ',' });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Returns true if a text starts with three digits and no fourth.
fn starts_thousand(text: &str) -> bool {
    text.bytes().take(4).take_while(u8::is_ascii_digit).count() == 3
}

/// Rewrites one character.
fn character(c: char, out: &mut String) {
    let same = match c {
        '−' | '–' | '‐' | '‑' | '﹣' | '\u{ff0d}' => "-",
        '×' | '·' | '⋅' | '∙' => "*",
        '⁄' | '∕' => "/",
        '€' | '£' | '¥' | '₹' | '\u{ff04}' => "$",
        '\u{ff05}' => "%",
        'º' | '˚' => "°",
        '’' => "'",
        '⩽' | '≦' => "≤",
        '⩾' | '≧' => "≥",
        '√' => "\\sqrt",
        '\u{a0}' | '\u{2007}' | '\u{2009}' | '\u{200a}' | '\u{202f}' => "\u{1f}",
        THIN | '~' => " ",
        '½' => " 1/2",
        '⅓' => " 1/3",
        '⅔' => " 2/3",
        '¼' => " 1/4",
        '¾' => " 3/4",
        '⅕' => " 1/5",
        '⅛' => " 1/8",
        // Full-width digits, as Chinese and Japanese text has them.
        '\u{ff10}'..='\u{ff19}' => {
            out.push(char::from(b'0' + (c as u32 - 0xff10) as u8));
            return;
        }
        _ => {
            out.push(c);
            return;
        }
    };
    out.push_str(same);
}

/// Rewrites the LaTeX command whose backslash has just been read; returns what follows it.
fn command<'a>(rest: &'a str, out: &mut String) -> &'a str {
    let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    if letters == 0 {
        let Some(symbol) = rest.chars().next() else {
            out.push('\\');
            return rest;
        };
        match symbol {
            // `1,\!000` is another spelling of `1{,}000`.
            '!' if out.ends_with(',') && starts_thousand(&rest[1..]) => {
                out.pop();
                out.push(THIN);
            }
            '!' => {}
            ',' => out.push(THIN),
            '$' | '%' => out.push(symbol),
            ';' | ':' | ' ' | '(' | ')' | '[' | ']' => out.push(' '),
            _ => {
                out.push('\\');
                character(symbol, out);
            }
        }
        return &rest[symbol.len_utf8()..];
    }
    let (name, after) = rest.split_at(letters);
    match name {
        "left" | "right" | "displaystyle" | "big" | "Big" | "bigl" | "bigr" | "Bigl" | "Bigr" | "boldsymbol" | "bm"
        | "mathbb" => {}
        "le" | "leq" | "leqslant" => out.push('≤'),
        "ge" | "geq" | "geqslant" => out.push('≥'),
        "ne" | "neq" => out.push('≠'),
        "approx" => out.push('≈'),
        "equiv" => out.push('≡'),
        "in" => out.push('∈'),
        "infty" => out.push('∞'),
        "lbrace" => out.push_str("\\{"),
        "rbrace" => out.push_str("\\}"),
        "lvert" | "rvert" | "vert" => out.push('|'),
        "frac" | "dfrac" | "tfrac" | "cfrac" => out.push_str("\\frac"),
        "times" | "cdot" | "ast" => out.push('*'),
        "circ" | "degree" | "degrees" => out.push('°'),
        "div" => out.push('/'),
        "pi" => out.push('π'),
        "quad" | "qquad" => out.push(' '),
        "text" | "textbf" | "textit" | "textrm" | "mathrm" | "mathbf" | "mathit" | "mbox" | "operatorname" => {
            return argument(after, out);
        }
        _ => {
            out.push('\\');
            out.push_str(name);
        }
    }
    after
}

/// Takes the braces off a text command's argument and sets it between spaces; returns what follows.
fn argument<'a>(after: &'a str, out: &mut String) -> &'a str {
    out.push(' ');
    let Some(inside) = after.trim_start().strip_prefix('{') else { return after };
    let Some(end) = inside.bytes().take(REACH).position(|byte| byte == b'}') else { return after };
    inside[..end].chars().for_each(|c| character(c, out));
    out.push(' ');
    &inside[end + 1..]
}

/// Rewrites a run of superscripts as `^{…}`; returns what follows.
fn superscript<'a>(rest: &'a str, out: &mut String) -> &'a str {
    let digits = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    out.push_str("^{");
    let mut rest = rest;
    while let Some(c) = rest.chars().next() {
        let digit = digits.iter().position(|digit| *digit == c).map(|digit| char::from(b'0' + digit as u8));
        let Some(same) = digit.or((c == '⁻').then_some('-')) else { break };
        out.push(same);
        rest = &rest[c.len_utf8()..];
    }
    out.push('}');
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(plain(text), expected, "{text:?}");
    }

    #[test]
    fn many_spellings_become_one() {
        check(r"\left(\dfrac{1}{2}\right)", r"(\frac{1}{2})");
        check(r"2.5\times10^{3}", "2.5*10^{3}");
        check("10⁻³ cm²", "10^{-3} cm^{2}");
        check(r"90^\circ", "90^°");
        check(r"5 \text{ km}", "5   km ");
        check(r"\text{open", " {open");
        check(r"1{,}000 or 1\,000 or 1,\!000", "1\u{1f}000 or 1\u{1f}000 or 1\u{1f}000");
        check("−5–\u{ff14}2", "-5-42");
        check("1½ €", "1 1/2 $");
        check(r"\alpha \{1\} \", r"\alpha \{1\} \");
        check(r"\é", r"\é");
    }
}
