//! Right and wrong answers, case by case.

use super::*;
use crate::tests::{group, values};

mod properties;

fn is_right(extract: Extract, answer: &str, text: &str) -> bool {
    let values = values(&mut Config { extract }.build().unwrap(), &group("", Some(answer), &[text]));
    values == [Some(1.0)]
}

fn check(extract: Extract, table: &[(&str, &str, bool)]) {
    let wrong: Vec<_> =
        table.iter().filter(|(answer, text, expected)| is_right(extract, answer, text) != *expected).collect();
    assert!(wrong.is_empty(), "(answer, text, expected) under {extract:?} differs for {wrong:#?}");
}

#[test]
fn the_last_number_and_no_other() {
    check(
        Extract::LastNumber,
        &[
            ("22", "22", true),
            ("22", "7+15=22.", true),
            ("22", "22.0", true),
            ("22", "The answer is **22**!", true),
            ("22", "7 or 15 or 22", true),
            ("22", "22 or 7", false),
            ("22", "The answer is 22, since 7+15", false),
            ("22", "\\boxed{22} after 5 steps", false),
            ("22", "no idea", false),
            ("22", "", false),
            ("22", "122", false),
            ("22", "22 apples", true),
            ("22", "答案是22。", true),
            ("22", "x22", false),
            ("22", "22nd", true),
            ("22", "22 m^2", true),
            ("22", "22 m²", true),
            ("22", "22 x_2", true),
            ("22", "22 x_{12}", true),
            ("2", "5 m^2", false),
            ("22", "It is 22...", true),
            ("22", "so...22", true),
            ("22", "is.22", true),
            ("3", "2^3", false),
            ("5", "12/25/2025", false),
            ("3", "1.2.3", false),
            ("2", "3\\sqrt{2}", false),
            ("2", "\\frac{\\pi}{2}", false),
            ("30", "at 12:30", true),
        ],
    );
}

#[test]
fn signs_and_operators() {
    check(
        Extract::LastNumber,
        &[
            ("-5", "-5", true),
            ("-5", "5", false),
            ("5", "-5", false),
            ("5", "10-5", true),
            ("-5", "10-5", false),
            ("5", "10 - 5", true),
            ("5", "10 -5", true),
            ("5", "(10)-5", true),
            ("-5", "10--5", true),
            ("-5", "10+-5", true),
            ("-5", "= -5", true),
            ("-5", "= - 5", true),
            ("-5", "7-12=-5", true),
            ("-5", "It is −5.", true),
            ("-5", "It is -5.", true),
            ("5", "It is - 5.", true),
            ("-5", "It is $-5$.", true),
            ("5", "$10$-$5$", true),
            ("-5", "-$5", true),
            ("-5", "(-5)", true),
            ("-5", "**-5**", true),
            ("5", "step-5", true),
            ("5", "- 5", true),
            ("-5", "7\n-5", true),
            ("-5", "答案是-5", true),
            ("-0.5", "-1/2", true),
            ("-1.5", "is -1 1/2", true),
            ("5", "+5", true),
        ],
    );
}

#[test]
fn forms_of_numbers() {
    check(
        Extract::LastNumber,
        &[
            ("1234567.89", "1,234,567.89", true),
            ("1000", "1{,}000", true),
            ("1000", "1\\,000", true),
            ("1000", "1,\\!000", true),
            ("1000", "1\u{202f}000", true),
            ("15", "7,15", true),
            ("100", "5, 100", true),
            ("0.5", ".5", true),
            ("0.5", "1/2", true),
            ("0.5", "2/4", true),
            ("1/2", "0.50", true),
            ("1/2", "\\frac{1}{2}", true),
            ("1/2", "\\dfrac12", true),
            ("1/2", "½", true),
            ("1/3", "0.33", false),
            ("-1/2", "-\\frac{1}{2}", true),
            ("2.5", "2 1/2", true),
            ("2.5", "2\\frac{1}{2}", true),
            ("2.5", "2½", true),
            ("1.5", "1 \\frac{3}{2}", false),
            ("50", "50%", true),
            ("0.5", "50%", true),
            ("50%", "0.5", true),
            ("50%", "50 percent", true),
            ("50%", "50\\%", true),
            ("50", "5000%", true),
            ("50", "500%", false),
            ("1500", "1.5e3", true),
            ("1500", "1.5 × 10^3", true),
            ("1500", "1.5\\times10^{3}", true),
            ("1500", "1.5 \\cdot 10³", true),
            ("0.0015", "1.5*10^-3", true),
            ("1000000", "10^6", true),
            ("5000000", "5 million", true),
            ("90", "90°", true),
            ("90", "90^\\circ", true),
            ("4", "\\sqrt{16}", true),
            ("1.5", "\\sqrt{2.25}", true),
            ("22", "$22", true),
            ("22", "22 €", true),
            ("22", "USD22", true),
            ("22", "Rs.22", true),
            ("22", "\u{ff12}\u{ff12}", true),
        ],
    );
}

#[test]
fn a_sum_left_undone_is_no_answer() {
    check(
        Extract::LastNumber,
        &[
            ("2", "6/3", false),
            ("3", "6/3", true),
            ("2", "\\frac{6}{3}", false),
            ("8", "2^3", false),
            ("7", "7/1", false),
        ],
    );
}

#[test]
fn boxes_first() {
    check(
        Extract::BoxedThenLast,
        &[
            ("22", "\\boxed{22} after 5 steps", true),
            ("22", "\\boxed{7} no, \\boxed{22}", true),
            ("7", "\\boxed{7} no, \\boxed{22}", false),
            ("22", "\\boxed{\\boxed{22}}", true),
            ("1/2", "\\boxed{\\frac{1}{2}}", true),
            ("22", "\\boxed{x = 22}", true),
            ("22", "\\boxed{7+15=22}", true),
            ("22", "\\boxed{22 \\text{ km/h}}", true),
            ("22", "\\boxed{\\$22.00}", true),
            ("22", "\\boxed{22\\,\\mathrm{m}^2}", true),
            ("22", "\\boxed{7, 15, 22}", false),
            ("22", "\\boxed{7 or 22}", false),
            ("22", "\\boxed{x=7, y=22}", false),
            ("22", "\\boxed{x>=22}", false),
            ("22", "\\boxed{22x}", false),
            ("2", "\\boxed{2\\pi}", false),
            ("2\\pi", "\\boxed{2 \\pi}", true),
            ("2", "\\boxed{2\\sqrt{3}}", false),
            ("22", "\\boxed{}", false),
            ("22", "\\boxed{7 and then 22", true),
            ("2", "\\boxed{6/3}", true),
            ("(3, 4)", "\\boxed{(3,4)}", true),
            ("\\left(3, 4\\right)", "\\boxed{(3,4)}", true),
            ("3, 4", "\\boxed{4, 3}", false),
            ("x+1", "\\boxed{x + 1}", true),
            ("\\text{Paris}", "It is \\boxed{paris}.", true),
            ("\\{1, 2\\}", "\\boxed{\\{1,2\\}}", true),
            ("\\frac{a}{bc}", "\\boxed{\\frac{ab}{c}}", false),
        ],
    );
}

#[test]
fn then_what_is_said_to_be_the_answer_then_the_last_number() {
    check(
        Extract::BoxedThenLast,
        &[
            ("22", "7+15 #### 22", true),
            ("22", "#### 22\nThat took 5 minutes.", true),
            ("22", "#### The total is $22", true),
            ("22", "The answer is 22. It took me 5 minutes.", true),
            ("22", "The answer is 7+15=22.", true),
            ("22", "**Answer:** 22", true),
            ("22", "Answer:\n22", true),
            ("22.5", "The answer is 22.5. Then 7", true),
            ("7", "The answer is 7 or 22.", false),
            ("7", "The answer is 7. No: the answer is 22.", false),
            ("22", "The answer is below. 22", true),
            ("22", "7 and 15 make 22", true),
            ("B", "The answer is (B).", true),
            ("Paris", "Answer: Paris", true),
            ("Paris", "paris", true),
            ("Paris", "It is Paris", false),
        ],
    );
}

#[test]
fn boxed_and_hash_extraction_read_the_answer_behind_their_mark_alone() {
    check(
        Extract::Boxed,
        &[("22", "\\boxed{22}", true), ("22", "22", false), ("22", "#### 22", false), ("22", "\\boxed {22}", true)],
    );
    check(
        Extract::Hash,
        &[("22", "#### 22", true), ("22", "####22 apples", true), ("22", "22", false), ("22", "#### 7\n#### 22", true)],
    );
}

#[test]
fn data_sets_answers_are_read_too() {
    check(
        Extract::LastNumber,
        &[
            ("7 and 15 make 22.\n#### 22", "22", true),
            ("7 and 15 make 22.\n#### 1,022", "1022", true),
            ("We get $x = \\boxed{22}$.", "22", true),
            ("The answer is 22.", "22", true),
            ("$22$", "22", true),
            ("22 dollars", "22", true),
        ],
    );
}

#[test]
fn without_an_answer_nothing_is_judged() {
    let mut rule = Config::default().build().unwrap();
    assert_eq!(rule.grade(&[group("", None, &["22"])])[0], [Grade::missing("the prompt has no answer")]);
}

#[test]
fn a_negation_takes_a_number_back() {
    check(
        Extract::BoxedThenLast,
        &[
            ("12", "The answer is not 12. It is 13.", false),
            ("13", "The answer is not 12. It is 13.", true),
            ("12", "The answer is not 12.", false),
            ("12", "The answer isn't 12.", false),
            ("12", "The answer isn’t 12", false),
            ("12", "The answer cannot be 12.", false),
            ("12", "The answer is not equal to 12.", false),
            ("13", "The answer is not 12 but 13.", true),
            ("13", "The answer is 12, not 13.", false),
            ("12", "The answer is 12, not 13.", true),
            ("12", "The answer is 12 rather than 13.", true),
            ("12", "The answer is 12 instead of 13.", true),
            ("12", "The answer is 12. No, the answer is not 12. It is 13.", false),
            ("12", "I was not sure, but now I have 12", true),
            ("12", "It is not hard to see that it is 12", true),
            ("100", "It is 100, not (0,5)", true),
            ("12", "The answer is not 12 or 13.", false),
            ("13", "The answer is not 12 or 13.", false),
        ],
    );
    check(Extract::LastNumber, &[("13", "12, not 13", false), ("12", "12, not 13", true)]);
}

#[test]
fn a_statement_is_worth_what_it_comes_to() {
    check(
        Extract::BoxedThenLast,
        &[
            ("3", "The answer is 6/3.", false),
            ("2", "The answer is 6/3.", true),
            ("3", "6/3", false),
            ("2", "6/3", true),
            ("3", "#### 6/3", false),
            ("2", "#### \\frac{6}{3}", true),
            ("15", "The answer is 7+15.", false),
            ("5", "The answer is 10 - 5.", false),
            ("5", "The answer is 10 - 5 = 5.", true),
            ("3", "The answer is $2x + 3$.", false),
            ("-5", "The answer is -5.", true),
            ("-5", "x = -5", true),
            ("22", "The answer is: **22**", true),
            ("22", "* 22", true),
            ("5", "x = 5x", false),
            ("5", "5x", false),
            ("5", "The answer is 5x.", false),
            ("5", "5\\theta", false),
            ("101", "101_2", false),
            ("5", "5m", true),
            ("5", "5!", false),
            ("5", "\\boxed{5!}", false),
            ("120", "\\boxed{5!}", true),
            ("120", "5!", true),
            ("120", "x = 5!", true),
            ("120", "Answer: 5!", true),
            ("5", "Answer: 5!", false),
            ("120", "The answer is 5! = 120.", true),
            ("5", "5!!", false),
            ("2", "(1/2)!", false),
            ("5", "The answer is 5!", true),
            ("5", "It is 5!", true),
            ("5", "It is 5!!!", true),
            ("22", "\\boxed{22 apples!}", true),
            ("22", "**22**!", true),
            ("1", "0!", true),
            ("5", "1000!", false),
        ],
    );
}

#[test]
fn spellings_of_one_value_are_equal() {
    check(
        Extract::BoxedThenLast,
        &[
            ("x^2+1", "\\boxed{x^{2}+1}", true),
            ("x^2+1", "\\boxed{x^2+2}", false),
            ("x^{12}", "\\boxed{x^12}", true),
            ("x^{12}", "\\boxed{x^{1}2}", false),
            ("\\frac{\\pi}{2}", "\\boxed{\\frac\\pi2}", true),
            ("\\frac{\\pi}{2}", "\\boxed{\\pi/2}", true),
            ("\\frac{\\pi}{2}", "\\boxed{\\frac{1}{2}\\pi}", true),
            ("\\frac{\\pi}{2}", "\\boxed{0.5π}", true),
            ("\\frac{\\pi}{2}", "\\boxed{\\frac{2}{\\pi}}", false),
            ("\\frac{\\pi}{2}", "\\boxed{\\frac{\\pi}{3}}", false),
            ("\\frac{\\pi}{2}", "\\boxed{-\\frac{\\pi}{2}}", false),
            ("\\frac{\\pi}{2}", "\\boxed{x = \\frac{\\pi}{2}}", true),
            ("\\frac{\\pi^2}{6}", "\\boxed{\\pi^{2}/6}", true),
            ("(3, \\frac{\\pi}{2})", "\\boxed{(3,\\pi/2)}", true),
            ("\\frac{\\sqrt{3}}{2}", "\\boxed{\\frac{\\sqrt 3}{2}}", true),
            ("\\frac{\\sqrt{3}}{2}", "\\boxed{\\sqrt{3}/2}", true),
            ("\\frac{\\sqrt{3}}{2}", "\\boxed{\\frac{\\sqrt3}{3}}", false),
            ("2\\sqrt{3}", "\\boxed{2\\sqrt3}", true),
            ("2\\sqrt{3}", "\\boxed{\\sqrt{12}}", true),
            ("2\\sqrt{3}", "\\boxed{2√3}", true),
            ("2\\sqrt{3}", "\\boxed{\\frac{6}{\\sqrt{3}}}", true),
            ("2\\sqrt{3}", "\\boxed{\\sqrt{6}}", false),
            ("2\\sqrt{3}", "\\boxed{23}", false),
            ("2\\sqrt{3}", "\\boxed{-2\\sqrt{3}}", false),
            ("2", "\\boxed{\\sqrt{2}\\sqrt{2}}", true),
            ("1000", "\\boxed{1'000}", true),
            ("1000", "\\boxed{1’000}", true),
            ("1'000", "1000", true),
            ("[-2,7]", "\\boxed{x\\in[-2,7]}", true),
            ("(3,4)", "\\boxed{(x, y) = (3, 4)}", true),
            ("(3,4)", "\\boxed{\\boldsymbol{(3,4)}}", true),
            ("x \\leq 3", "\\boxed{x\\le 3}", true),
            ("x \\leq 3", "\\boxed{x <= 3}", true),
            ("x \\leq 3", "\\boxed{x\\ge 3}", false),
            ("x \\leq 3", "\\boxed{3}", false),
            ("\\frac{a}{b}", "\\boxed{a/b}", true),
            ("\\frac{a}{b}", "\\boxed{b/a}", false),
            ("2x+1", "\\boxed{y = 2x + 1}", true),
            ("y=2x+1", "\\boxed{2x + 1}", true),
            ("y=2x+1", "\\boxed{x = 2x + 1}", false),
            ("2x+1", "\\boxed{f(x) = 2x + 1}", true),
            ("1/3", "\\boxed{0.\\overline{3}}", true),
            ("1/6", "\\boxed{0.1\\overline{6}}", true),
            ("1/3", "\\boxed{0.\\overline{4}}", false),
            ("10", "\\boxed{\\approx 10}", true),
            ("5", "\\boxed{|-5|}", true),
            ("-5", "\\boxed{|-5|}", false),
            ("-5", "|-5|", false),
            ("5", "\\boxed{\\boldsymbol{5}}", true),
            ("5", "\\boxed{n\\equiv 5}", true),
            ("12:30", "\\boxed{12{:}30}", true),
            ("2*3", "\\boxed{23}", false),
            ("1 2", "\\boxed{12}", false),
            ("f'(x)", "\\boxed{f(x)}", false),
            ("(-\\infty, 3]", "\\boxed{(-∞,3]}", true),
        ],
    );
}

#[test]
fn whole_numbers_of_any_length_are_compared_digit_by_digit() {
    let numbers = [
        "123456789012345678901234567890",
        "30414093201713378043612608166064768844377641568960512000000000000",
        "18446744073709551616",
        "-9223372036854775809",
        "9007199254740993",
        "0.1",
        "3.141592653589793238462643383279",
    ];
    for number in numbers {
        let last = number.len() - 1;
        let other = format!("{}{}", &number[..last], if number.ends_with('9') { '8' } else { '9' });
        let boxed = format!("\\boxed{{{number}}}");
        check(
            Extract::BoxedThenLast,
            &[(number, number, true), (number, &boxed, true), (number, &other, false), (&other, &boxed, false)],
        );
    }
    check(
        Extract::BoxedThenLast,
        &[
            ("30414093201713378043612608166064768844377641568960512000000000000", "\\boxed{50!}", true),
            ("123456789012345678901234567890", "1.2345678901234568e+29", false),
            ("123456789012345678901234567890", "123,456,789,012,345,678,901,234,567,890", true),
        ],
    );
}

#[test]
fn an_answer_that_says_nothing_leaves_its_samples_ungraded() {
    let mut rule = Config::default().build().unwrap();
    let texts = ["", " ", "\\boxed{}", "\\boxed{ }", "Answer: ", "#### ", "$$", "42"];
    for answer in ["", " ", "\\boxed{}", "\\boxed{ }", "#### ", "$$", "$ $", "Answer: ", ".", "{}", "(,)"] {
        let expected = vec![Grade::missing("the prompt's answer is empty"); texts.len()];
        assert_eq!(rule.grade(&[group("", Some(answer), &texts)])[0], expected, "{answer:?}");
    }
    let empty = ["", " ", "\\boxed{}", "Answer: ", "#### ", "$$"];
    for answer in ["42", "x+1", "(1,2)", "B"] {
        let wrong = [Some(0.0); 6];
        assert_eq!(values(&mut rule, &group("", Some(answer), &empty)), wrong, "{answer:?}");
    }
}

#[test]
fn in_brackets_a_comma_separates() {
    check(
        Extract::BoxedThenLast,
        &[
            ("(0,100)", "\\boxed{100}", false),
            ("(0,100)", "\\boxed{0100}", false),
            ("(0,100)", "\\boxed{(0, 100)}", true),
            ("(0,100)", "\\boxed{[0,100]}", false),
            ("(0,100)", "\\boxed{(0,100]}", false),
            ("(0,100)", "(0, 100)", true),
            ("(0,100)", "The answer is (0, 100).", true),
            ("(0,100)", "Answer: $(0, 100)$", true),
            ("100", "The interval is (0,100)", false),
            ("100", "The answer is (0,100).", false),
            ("100", "The interval is \\[(0,100)\\]", false),
            ("100", "The interval is (-\\infty, 100)", false),
            ("0", "The interval is [0, \\infty)", false),
            ("0100", "\\boxed{0,100}", false),
            ("100", "\\boxed{[0,100]}", false),
            ("100", "\\boxed{\\{0,100\\}}", false),
            ("[2,500]", "\\boxed{2500}", false),
            ("[2,500]", "\\boxed{[2,500]}", true),
            ("[2,500]", "\\boxed{\\left[2, 500\\right]}", true),
            ("(1,200)", "\\boxed{(1, 200)}", true),
            ("(1,200)", "1200", false),
            ("(1,200)", "\\boxed{1200}", false),
            ("(1,200)", "\\boxed{1,200}", false),
            ("(1,234)", "\\boxed{1234}", false),
            ("1200", "\\boxed{(1,200)}", false),
            ("1200", "It is (1,200)", false),
            ("1200", "\\boxed{1,200}", true),
            ("1,200", "\\boxed{1200}", true),
            ("1200", "He pays (about 1,200)", true),
            ("1200", "He pays ($1,200)", true),
            ("1200", "(1{,}200)", true),
            ("(1000, 2)", "\\boxed{(1{,}000, 2)}", true),
            ("(1000, 2)", "\\boxed{(1\\,000, 2)}", true),
            ("(1000, 2)", "\\boxed{(1,\\!000, 2)}", true),
            ("(3,0.5)", "\\boxed{(3,\\frac12)}", true),
            ("(1,2)", "\\boxed{(2,1)}", false),
            ("(1,2)", "\\boxed{(1,2,3)}", false),
            ("(1,2)", "\\boxed{12}", false),
            ("[2,5)", "\\boxed{[2,5]}", false),
            ("[2,5)", "\\boxed{[2, 5)}", true),
            ("\\{1,2,3\\}", "\\boxed{\\{3,2,1\\}}", true),
            ("\\{1,2,3\\}", "\\boxed{1,2,3}", true),
            ("\\{1,2\\}", "\\boxed{\\{1,3\\}}", false),
            ("\\{1,2\\}", "\\boxed{\\{1,1\\}}", false),
            ("\\{1,2\\}", "\\boxed{(1,2)}", false),
            ("\\{(1,2),(3,4)\\}", "\\boxed{\\{(3,4),(1,2)\\}}", true),
            ("\\{(1,2),(3,4)\\}", "\\boxed{\\{(2,1),(3,4)\\}}", false),
            ("(-\\infty, 3]", "\\boxed{(-\\infty,3]}", true),
            ("5", "\\boxed{(5)}", true),
            ("3, 4", "\\boxed{3,4}", true),
            ("1,000, 2,000", "\\boxed{1000, 2000}", true),
        ],
    );
}
