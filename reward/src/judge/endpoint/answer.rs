//! Parsing of a chat model's reply into a comparison.

use schema::Grade;
use serde_json::Value;

/// The comparison in a reply of the chat completions interface: P(A), 0.5 for a tie, or the reason why it is missing.
///
/// * `soft`: P(A) is the share of A in the probability of A, B and tie for the first token, a tie counting half
pub(super) fn read(reply: &Value, soft: bool) -> Grade {
    let choice = &reply["choices"][0];
    if soft {
        return match first_token(choice) {
            Some(probability) => Grade::of(probability as f32),
            None => Grade::missing(
                "the judge's reply has no log-probabilities of A, B or tie; the server must offer them, or `soft` be false",
            ),
        };
    }
    let Some(text) = choice["message"]["content"].as_str() else {
        return Grade::missing(format!("the judge's reply has no text: {}", shortened(&reply.to_string())));
    };
    word(text).map_or_else(
        || Grade::missing(format!("the judge answered neither A, B nor tie: {}", shortened(text))),
        Grade::Value,
    )
}

/// The beginning of a text, on one line.
pub(super) fn shortened(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(160).collect()
}

/// P(A) by the text of a reply: a single word after the text up to `</think>`, or the last `[[A]]`, `[[B]]` or `[[C]]`;
/// `None` if there is neither.
fn word(text: &str) -> Option<f32> {
    let text = text.rsplit_once("</think>").map_or(text, |(_, said)| said);
    let bare = |word: &str| word.trim_matches(|character: char| !character.is_alphanumeric()).to_lowercase();
    let whole = bare(text);
    let last = text.rmatch_indices("[[").find_map(|(start, _)| outcome(&bare(text[start..].split("]]").next()?)));
    outcome(whole.strip_prefix("answer ").unwrap_or(&whole)).or(last)
}

fn outcome(word: &str) -> Option<f32> {
    match word {
        "a" => Some(1.0),
        "b" => Some(0.0),
        "tie" | "c" => Some(0.5),
        _ => None,
    }
}

/// P(A) by the log-probabilities of the first token; `None` unless A, B and tie have more than half of the probability.
fn first_token(choice: &Value) -> Option<f64> {
    let tokens = choice["logprobs"]["content"][0]["top_logprobs"].as_array()?;
    let (mut won, mut all) = (0.0, 0.0);
    for token in tokens {
        if let Some(share) = outcome(&token["token"].as_str()?.trim().to_lowercase()) {
            let probability = token["logprob"].as_f64()?.exp();
            won += f64::from(share) * probability;
            all += probability;
        }
    }
    (all > 0.5).then(|| won / all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(text: &str) -> Grade {
        read(&json!({ "choices": [{ "message": { "content": text } }] }), false)
    }

    #[test]
    fn one_word_is_a_verdict_and_a_sentence_is_none() {
        for (text, expected) in [
            ("A", Some(1.0)),
            (" b.\n", Some(0.0)),
            ("**Tie**", Some(0.5)),
            ("Answer B", Some(0.0)),
            ("<think>A seems longer</think>\n\nB", Some(0.0)),
            ("Answer A is right, B is not. My verdict: [[A]]", Some(1.0)),
            ("[[A]]? No: [[C]]", Some(0.5)),
            ("A is better", None),
            ("<think>A", None),
            ("I cannot say.", None),
            ("", None),
        ] {
            assert_eq!(said(text).value(), expected, "{text:?}");
        }
        let Grade::Missing(reason) = said("A is\nbetter") else { panic!("judged") };
        assert_eq!(reason, "the judge answered neither A, B nor tie: A is better");
        assert!(matches!(read(&json!({ "choices": [] }), false), Grade::Missing(reason) if reason.contains("no text")));
    }

    #[test]
    fn a_soft_verdict_is_the_share_of_a() {
        let reply = |tokens: &[(&str, f64)]| {
            let tokens: Vec<Value> =
                tokens.iter().map(|(token, p)| json!({ "token": token, "logprob": p.ln() })).collect();
            json!({ "choices": [{ "logprobs": { "content": [{ "top_logprobs": tokens }] } }] })
        };
        // (0.5 + 0.1 + ½ · 0.1) / (0.5 + 0.1 + 0.2 + 0.1)
        let soft = read(&reply(&[("A", 0.5), (" A", 0.1), ("B", 0.2), ("tie", 0.1), ("I", 0.05)]), true);
        assert!((soft.value().unwrap() - 0.65 / 0.9).abs() < 1e-6, "{soft:?}");
        assert_eq!(read(&reply(&[("I", 0.7), ("A", 0.2)]), true).value(), None);
        assert_eq!(read(&json!({ "choices": [{ "message": { "content": "A" } }] }), true).value(), None);
    }
}
