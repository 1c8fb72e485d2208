//! Laws that every rule obeys, and the samples that tests are made of.

use crate::rule::{self, command, length, regex};
use crate::{Config, Reward, build};
use schema::{Finish, Group, PolicyVersion, Prompt, Sample, SamplerSettings};

/// A group of these completions, with one token per byte.
pub(crate) fn group(question: &str, answer: Option<&str>, texts: &[&str]) -> Group {
    let mut prompt = Prompt::user(question);
    prompt.answer = answer.map(Into::into);
    Group {
        prompt,
        prompt_ids: vec![1],
        policy: PolicyVersion { version: 0, hash: String::new() },
        settings: SamplerSettings::default(),
        samples: texts.iter().map(|text| sample(text)).collect(),
    }
}

fn sample(text: &str) -> Sample {
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    let (mask, logprobs) = (vec![true; ids.len()], vec![-1.0; ids.len()]);
    Sample { ids, mask, logprobs, finish: Finish::Eos, text: text.into() }
}

/// The values of a group's samples.
pub(crate) fn values(reward: &mut impl Reward, group: &Group) -> Vec<Option<f32>> {
    reward.grade(std::slice::from_ref(group))[0].iter().map(schema::Grade::value).collect()
}

/// Every rule with its default settings, completed where the rule means nothing without a setting.
fn every_rule() -> Vec<rule::Config> {
    let complete = |config| match config {
        rule::Config::Command(default) => {
            let args = vec!["{print 1}".into()];
            rule::Config::Command(command::Config { program: "awk".into(), args, ..default })
        }
        rule::Config::Length(default) => rule::Config::Length(length::Config { target: Some(40), ..default }),
        rule::Config::Regex(default) => rule::Config::Regex(regex::Config { pattern: "[0-9]".into(), ..default }),
        config => config,
    };
    rule::Config::defaults().into_iter().map(complete).collect()
}

/// Texts that have broken graders before: nothing, odd bytes, half-open LaTeX, right-to-left, and a great deal.
fn odd_texts() -> Vec<String> {
    let short = [
        "",
        " ",
        "\n\n",
        "\0\u{1f}\u{7f}",
        "22",
        "-",
        "- ",
        "-$",
        "$",
        ".",
        "..5",
        "1.2.3.4",
        "1/2/3",
        "1/0",
        "1e99999",
        "1e-99999",
        "10^999999999999999999999",
        "\\",
        "\\boxed{",
        "\\boxed{}",
        "}\\boxed{{}",
        "####",
        "#### ",
        "\\frac",
        "\\frac{",
        "\\frac{1}",
        "\\frac{1}{0}",
        "\\frac{}{}",
        "\\sqrt",
        "\\sqrt{",
        "\\sqrt{-1}",
        "^",
        "^{",
        "5^",
        "_{",
        "5_{",
        "answer is",
        "The answer is:",
        "Answer: \u{202e}22",
        "٢٢",
        "二十二",
        "22️⃣",
        "👩‍👩‍👧‍👦 22",
        "e\u{301}5",
        "½½",
        "⁻",
        "5⁻",
        "<think>",
        "%",
        "5 %%",
        "per cent",
        "x=",
        "=",
        "==5",
        "\\text{",
        "\\text{é}é",
        "\u{feff}22",
        "5\u{a0}000",
    ];
    let huge = [
        "9", "9,999", "1/", "-", "\\boxed{", "\\frac{", "\\text{", "_{", "^{", " ", "a ", "é", "1.", "#### ", "$", "é^",
    ];
    let huge = huge.iter().map(|text| text.repeat(200_000 / text.len()));
    short.iter().map(ToString::to_string).chain(huge).collect()
}

#[test]
fn every_rule_is_total_and_stays_in_its_range() {
    let texts = odd_texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for config in every_rule() {
        let mut rule = config.build().unwrap();
        let groups = [group("What is 7+15?", Some("22"), &texts), group("Name it.", Some("\\frac{"), &texts)];
        let open = [group("Sing!", None, &texts), group("", Some(""), &[])];
        for group in groups.into_iter().chain(open) {
            let judged = rule.grade(std::slice::from_ref(&group));
            assert_eq!(judged.len(), 1, "{}", rule.name());
            assert_eq!(judged[0].len(), group.samples.len(), "{}", rule.name());
            for (value, text) in judged[0].iter().zip(&texts) {
                let shown: String = text.chars().take(40).collect();
                let in_range = value.value().zip(rule.range()).is_none_or(|(value, range)| range.contains(&value));
                assert!(in_range, "{} gives {value:?} to {shown:?}", rule.name());
            }
        }
        assert!(rule.grade(&[]).is_empty(), "{}", rule.name());
    }
}

#[test]
fn every_rule_judges_alike_twice_and_alone() {
    let texts = ["22", "the answer is 21", "<think>a</think><answer>22</answer>", "a a a a a a"];
    for config in every_rule() {
        let mut rule = config.build().unwrap();
        let together = rule.grade(&[group("", Some("22"), &texts)]);
        assert_eq!(together, rule.grade(&[group("", Some("22"), &texts)]), "{}", rule.name());
        for (text, judged) in texts.iter().zip(&together[0]) {
            assert_eq!(rule.grade(&[group("", Some("22"), &[text])])[0][0], *judged, "{} on {text:?}", rule.name());
        }
    }
}

#[test]
fn names_and_versions_tell_rules_apart() {
    for config in every_rule() {
        let (one, two) = (config.build().unwrap(), config.build().unwrap());
        assert_eq!(one.name(), config.name());
        assert_eq!(one.version(), two.version(), "{}", one.name());
    }
    let length = |target| length::Config { target: Some(target), ..length::Config::default() }.build().unwrap();
    assert_ne!(length(40).version(), length(41).version());
}

#[test]
fn a_config_reads_from_toml_and_writes_back() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct File {
        reward: Vec<Config>,
    }
    let text = r#"
        [[reward]]
        weight = 1.0
        rule.math_answer = {}

        [[reward]]
        name = "brief"
        weight = 0.1
        rule.length = { target = 40, unit = "characters" }
    "#;
    let file: File = toml::from_str(text).unwrap();
    assert_eq!(file.reward[1].name(), "brief");
    assert_eq!(build(&file.reward).unwrap().terms()[0].name, "math_answer");
    assert_eq!(toml::from_str::<File>(&toml::to_string(&file).unwrap()).unwrap(), file);
    let defaults = every_rule()
        .into_iter()
        .map(|rule| Config { name: None, weight: 1.0, rule: Some(rule), model: None })
        .collect();
    let defaults = File { reward: defaults };
    assert_eq!(toml::from_str::<File>(&toml::to_string(&defaults).unwrap()).unwrap(), defaults);
    for (key, problem) in [
        ("rule.math_answer = { exract = \"boxed\" }", "unknown field `exract`"),
        ("rule.maths = {}", "unknown variant `maths`"),
        ("weigth = 1\nrule.overlong = {}", "unknown field `weigth`"),
    ] {
        let error = toml::from_str::<File>(&format!("[[reward]]\n{key}")).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}
