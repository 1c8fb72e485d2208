//! Laws of answers, for texts of any kind.

use super::super::plain::plain;
use super::super::value::Value;
use super::*;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Signed;
use proptest::prelude::*;

/// Forms of answers; `#` stands for a whole number.
const FORMS: [&str; 16] = [
    "#",
    "-#",
    "#/7919",
    "0.#1",
    "#%",
    "#!x",
    "(#, 5]",
    "[5,#)",
    "\\{#, \\pi\\}",
    "#\\sqrt{3}",
    "\\frac{#}{\\pi}",
    "\\sqrt{#}\\pi^2",
    "x^{#}+1",
    "\\frac{x+#}{y}",
    "x \\leq #",
    "f(x) = x - #",
];

proptest! {
    #[test]
    fn any_text_is_the_same_as_itself(text in "\\PC{0,20}", latex in "[-0-9.,;/^_{}()\\[\\]|!'$%\\\\ a-fqrtx=<]{0,20}") {
        for text in [text, latex] {
            if let Some(value) = Value::new(&plain(&text)) {
                prop_assert!(value.same(&value), "{:?}: {:?}", text, value);
            }
        }
    }

    #[test]
    fn another_digit_or_form_is_another_answer(number in 2u32..1_000, other in 2u32..1_000, form in 0..FORMS.len()) {
        let boxed = |number: u32| format!("\\boxed{{{}}}", FORMS[form].replace('#', &number.to_string()));
        let answer = FORMS[form].replace('#', &number.to_string());
        prop_assert!(is_right(Extract::Boxed, &answer, &boxed(number)), "{}", answer);
        prop_assert_eq!(is_right(Extract::Boxed, &answer, &boxed(other)), number == other, "{} {}", answer, other);
        for other in (0..FORMS.len()).filter(|other| *other != form && (FORMS[form], FORMS[*other]) != ("#", "#%")) {
            let text = format!("\\boxed{{{}}}", FORMS[other].replace('#', &number.to_string()));
            let percents = (FORMS[form], FORMS[other]) == ("#%", "#");
            prop_assert_eq!(is_right(Extract::Boxed, &answer, &text), percents, "{} {}", answer, text);
        }
    }

    #[test]
    fn a_list_is_itself_and_no_other(
        items in proptest::collection::vec(0u32..2_000, 2..5), brackets in 0usize..5, index in 0usize..4, digit in 1u32..9,
    ) {
        let kinds = [("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), ("\\{", "\\}")];
        let list = |kind: usize, items: &[u32], comma: &str| {
            let items: Vec<_> = items.iter().map(ToString::to_string).collect();
            format!("{}{}{}", kinds[kind].0, items.join(comma), kinds[kind].1)
        };
        let boxed = |text: &str| format!("\\boxed{{{text}}}");
        let answer = list(brackets, &items, ",");
        prop_assert!(is_right(Extract::Boxed, &answer, &boxed(&list(brackets, &items, ", "))));
        for other in (0..kinds.len()).filter(|other| *other != brackets) {
            prop_assert!(!is_right(Extract::Boxed, &answer, &boxed(&list(other, &items, ","))), "{}", answer);
        }
        let mut changed = items.clone();
        changed[index % items.len()] += digit;
        prop_assert!(!is_right(Extract::Boxed, &answer, &boxed(&list(brackets, &changed, ","))), "{}", answer);
        let digits: String = items.iter().map(ToString::to_string).collect();
        prop_assert!(!is_right(Extract::Boxed, &answer, &boxed(&digits)), "{}", answer);
        prop_assert!(!is_right(Extract::BoxedThenLast, &digits, &answer), "{}", answer);
        prop_assert!(!is_right(Extract::LastNumber, &items[items.len() - 1].to_string(), &answer), "{}", answer);
    }

    #[test]
    fn a_value_in_any_form_is_the_same(units in -9_999_999i64..=9_999_999, places in 0usize..=4) {
        let same = forms(units, places);
        for answer in &same {
            for text in &same {
                for text in [text.clone(), format!("It is {text}."), format!("7 + 15 = ${text}$")] {
                    prop_assert!(is_right(Extract::LastNumber, answer, &text), "{:?} against {:?}", text, answer);
                }
                let boxed = format!("\\boxed{{{text}}}");
                prop_assert!(is_right(Extract::BoxedThenLast, answer, &boxed), "{:?} against {:?}", boxed, answer);
            }
            let other = &forms(units + 1, places)[0];
            prop_assert!(!is_right(Extract::LastNumber, answer, other), "{:?} against {:?}", other, answer);
        }
    }

    #[test]
    fn no_text_breaks_the_rule(answer in "\\PC{0,20}", text in "[\\PC\n]{0,40}", latex in "[-0-9.,;/^_{}()\\[\\]|!'$%\\\\ a-fqrtx=<]{0,40}") {
        for extract in [Extract::BoxedThenLast, Extract::LastNumber, Extract::Boxed, Extract::Hash] {
            is_right(extract, &answer, &text);
            is_right(extract, &latex, &text);
            is_right(extract, &answer, &latex);
        }
    }
}

#[test]
fn long_completions_of_brackets_and_braces_are_graded_in_linear_time() {
    // A quadratic pass over 100 kB has 10^10 steps.
    for part in ["(1,", "{", "\\frac{", "\\{1,(", "5! ", "(1,2)", "\\boxed{(", "not 1 ", "x^", "|1 - ", "1,000"] {
        let text = part.repeat(100_000 / part.len());
        let boxed = format!("\\boxed{{{text}}}");
        check(Extract::BoxedThenLast, &[("22", &text, false), ("22", &boxed, false), ("x+1", &boxed, false)]);
    }
}

/// `units / 10^places`, written in every form that can hold it.
fn forms(units: i64, places: usize) -> Vec<String> {
    let digits = format!("{:0width$}", units.unsigned_abs(), width = places + 1);
    let (whole, part) = digits.split_at(digits.len() - places);
    let thousands = grouped(whole);
    let mut forms = vec![format!("{digits}e-{places}"), format!("{digits} \\times 10^{{-{places}}}")];
    if places == 0 {
        forms.extend([whole.into(), thousands.clone(), format!("{thousands}.0")]);
    } else {
        forms.extend([format!("{whole}.{part}"), format!("{thousands}.{part}00")]);
    }
    let value = BigRational::new(BigInt::from(units).abs(), BigInt::from(10).pow(places as u32));
    if !value.is_integer() {
        forms.extend([format!("{}/{}", value.numer(), value.denom())]);
        forms.extend([format!("\\frac{{{}}}{{{}}}", value.numer(), value.denom())]);
    }
    let signs: &[&str] = if units < 0 { &["-", "\u{2212}"] } else { &[""] };
    signs.iter().flat_map(|sign| forms.iter().map(move |form| format!("{sign}{form}"))).collect()
}

/// Digits with a comma before every third from the end.
fn grouped(digits: &str) -> String {
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
