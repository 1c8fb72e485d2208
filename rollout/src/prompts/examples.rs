//! Rows with completions: one to imitate, or a chosen and a rejected one.
//!
//! Rows of every layout come out alike: a prompt whose metadata holds the text of the completions under [`COMPLETION`],
//! or under [`CHOSEN`] and [`REJECTED`], beside the other columns of the row. The layouts are those of data sets for
//! TRL:
//!
//! | columns | prompt |
//! |---|---|
//! | `prompt`, `completion` | the column; a completion is text, or a list with one assistant turn |
//! | `messages` | all turns before the last, which is the assistant's and the completion |
//! | one of these and `label` | as there; the label is true or false, 1 or 0, as a number or as text |
//! | `prompt`, `chosen`, `rejected` | the column |
//! | `chosen`, `rejected`, both conversations | the turns that both begin with, whatever `prompt` says |
//! | `chosen`, `rejected`, both text | the text that both begin with, up to the end of a word and without the blanks at its end; taken as it stands |

use super::table::{find, messages, missing};
use super::{RowKind, with_system};
use schema::{Message, PromptInput};
use serde_json::{Map, Value};

/// Metadata key of the completion of a demonstration.
pub const COMPLETION: &str = "completion";
/// Metadata key of the better completion of a pair.
pub const CHOSEN: &str = "chosen";
/// Metadata key of the worse completion of a pair.
pub const REJECTED: &str = "rejected";
/// Metadata key of the margin of a pair, a number: the least difference between the rewards of its completions.
pub const MARGIN: &str = "margin";
/// Metadata key of the label of a demonstration: true for a good one, false for a bad one.
pub const LABEL: &str = "label";

/// The column of whole conversations.
const MESSAGES: &str = "messages";

/// Names of the columns.
pub(super) struct Columns<'a> {
    pub(super) prompt: &'a str,
    pub(super) completion: &'a str,
    pub(super) chosen: &'a str,
    pub(super) rejected: &'a str,
    pub(super) label: &'a str,
    /// A system turn for conversations that have none of their own; none if empty.
    pub(super) system: &'a str,
}

/// The prompt and the completions that a row holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Given {
    /// The prompt, unless it is in a column of its own.
    pub(super) prompt: Option<PromptInput>,
    /// The completions as text, by their metadata keys.
    pub(super) texts: Vec<(&'static str, String)>,
    /// The label of the completion.
    pub(super) label: Option<bool>,
    /// The columns that they came from.
    pub(super) columns: Vec<String>,
}

impl Given {
    /// Reads the content that a row of this kind must have.
    ///
    /// # Errors
    ///
    /// A clause that names the column or the turn that is missing or malformed.
    pub(super) fn read(kind: RowKind, columns: &Columns<'_>, row: &Map<String, Value>) -> Result<Self, String> {
        match kind {
            RowKind::Prompts => Self::prompt(columns, row),
            RowKind::Demonstrations => Self::demonstration(columns, row),
            RowKind::Labelled => Self::labelled(columns, row),
            RowKind::Pairs => Self::pair(columns, row),
        }
    }

    fn prompt(columns: &Columns<'_>, row: &Map<String, Value>) -> Result<Self, String> {
        let conversation = row.get(MESSAGES).filter(|_| !row.contains_key(columns.prompt));
        let Some(conversation) = conversation else { return Ok(Self::default()) };
        let mut turns = messages(MESSAGES, conversation)?;
        if turns.len() > 1 && turns.last().is_some_and(is_assistant) {
            turns.pop();
        }
        Ok(Self { prompt: Some(columns.prompt_of(turns)), columns: vec![MESSAGES.into()], ..Self::default() })
    }

    fn demonstration(columns: &Columns<'_>, row: &Map<String, Value>) -> Result<Self, String> {
        let own = find(row, columns.completion).map(|value| (columns.completion, value));
        let conversation = || row.get(MESSAGES).map(|value| (MESSAGES, value));
        let Some((column, value)) = own.or_else(conversation) else {
            if row.contains_key(columns.completion) {
                return Err(format!("`{}` is null", columns.completion));
            }
            return Err(format!(
                "{}; nor is there a conversation in `{MESSAGES}`",
                missing("completion", columns.completion, row)
            ));
        };
        let (prompt, text) = match Written::read(column, value)? {
            Written::Text(text) => (None, text),
            Written::Turns(mut turns) => {
                let text = turns.pop().map(|last| last.content).unwrap_or_default();
                (Some(turns), text)
            }
        };
        let prompt = prompt.filter(|turns| !turns.is_empty());
        if prompt.is_none() && column == MESSAGES {
            return Err(format!("`{MESSAGES}` holds nothing but the answer; put the user's turn before it"));
        }
        if prompt.is_some() && column != MESSAGES && row.contains_key(columns.prompt) {
            return Err(format!(
                "`{column}` must be one assistant turn, since `{}` holds the turns before it",
                columns.prompt
            ));
        }
        Ok(Self {
            prompt: prompt.map(|turns| columns.prompt_of(turns)),
            texts: vec![(COMPLETION, text)],
            columns: vec![column.into()],
            ..Self::default()
        })
    }

    fn labelled(columns: &Columns<'_>, row: &Map<String, Value>) -> Result<Self, String> {
        let mut given = Self::demonstration(columns, row)?;
        let value = present("label", columns.label, row)?;
        let Some(label) = label(value) else {
            return Err(format!("`{}` must be true or false, or 1 or 0, but is {value}", columns.label));
        };
        given.label = Some(label);
        given.columns.push(columns.label.into());
        Ok(given)
    }

    fn pair(columns: &Columns<'_>, row: &Map<String, Value>) -> Result<Self, String> {
        let read = |what: &str, column: &str| Written::read(column, present(what, column, row)?);
        let (chosen, rejected) = (read(CHOSEN, columns.chosen)?, read(REJECTED, columns.rejected)?);
        let (prompt, chosen, rejected) = match (chosen, rejected) {
            (Written::Text(chosen), Written::Text(rejected)) if row.contains_key(columns.prompt) => {
                (None, chosen, rejected)
            }
            (Written::Text(chosen), Written::Text(rejected)) => {
                let shared = shared_text(&chosen, &rejected);
                if shared.is_empty() {
                    return Err(format!(
                        "there is no column `{}`, and `{}` and `{}` do not begin alike, so there is no prompt",
                        columns.prompt, columns.chosen, columns.rejected
                    ));
                }
                let rest = |text: &str| text[shared.len()..].to_owned();
                let rests = (rest(&chosen), rest(&rejected));
                (Some(PromptInput::Text(shared.to_owned())), rests.0, rests.1)
            }
            (Written::Turns(chosen), Written::Turns(rejected)) => {
                let most = chosen.len().min(rejected.len()) - 1;
                let shared = chosen.iter().zip(&rejected).take(most).take_while(|(a, b)| a == b).count();
                let answer = |column: &str, turns: &[Message]| match &turns[shared..] {
                    [answer] => Ok(answer.content.clone()),
                    rest => Err(format!(
                        "`{column}` has {} turns after those that both completions share, and only one is learned from",
                        rest.len()
                    )),
                };
                let answers = (answer(columns.chosen, &chosen)?, answer(columns.rejected, &rejected)?);
                let prompt = (shared > 0).then(|| columns.prompt_of(chosen[..shared].to_vec()));
                (prompt, answers.0, answers.1)
            }
            _ => {
                return Err(format!(
                    "`{}` and `{}` must both be text or both be conversations",
                    columns.chosen, columns.rejected
                ));
            }
        };
        if let Some(margin) = row.get(MARGIN).filter(|margin| !margin.is_number() && !margin.is_null()) {
            return Err(format!("`{MARGIN}` must be a number, but is {margin}"));
        }
        Ok(Self {
            prompt,
            texts: vec![(CHOSEN, chosen), (REJECTED, rejected)],
            columns: vec![columns.chosen.into(), columns.rejected.into()],
            ..Self::default()
        })
    }
}

impl Columns<'_> {
    fn prompt_of(&self, turns: Vec<Message>) -> PromptInput {
        PromptInput::Messages(with_system(self.system, turns))
    }
}

/// A completion as a file has it.
enum Written {
    Text(String),
    /// At least one turn, of which the last is the assistant's.
    Turns(Vec<Message>),
}

impl Written {
    fn read(column: &str, value: &Value) -> Result<Self, String> {
        if let Value::String(text) = value {
            return Ok(Self::Text(text.clone()));
        }
        let turns = messages(column, value)?;
        if turns.last().is_some_and(is_assistant) {
            return Ok(Self::Turns(turns));
        }
        Err(format!("`{column}` must end with a turn of the assistant, which is what is learned from"))
    }
}

/// Returns the value of a column that must be there and not null.
fn present<'a>(what: &str, column: &str, row: &'a Map<String, Value>) -> Result<&'a Value, String> {
    let absent = || match row.get(column) {
        Some(_) => format!("`{column}` is null"),
        None => missing(what, column, row),
    };
    find(row, column).ok_or_else(absent)
}

/// Reads a truth value as JSON, pandas, Parquet or CSV write it; `None` for anything else.
fn label(value: &Value) -> Option<bool> {
    let text = value.as_str().map(str::to_ascii_lowercase);
    match (value.as_bool(), value.as_f64(), text.as_deref()) {
        (Some(label), ..) => Some(label),
        (_, Some(1.0), _) | (.., Some("true" | "1")) => Some(true),
        (_, Some(0.0), _) | (.., Some("false" | "0")) => Some(false),
        _ => None,
    }
}

fn is_assistant(turn: &Message) -> bool {
    turn.role == "assistant"
}

/// Returns the common beginning of two texts after which both go on with something of their own. It ends neither inside
/// a word nor inside a mark such as `<|im_end|>`, and without trailing blanks, so that each rest keeps its leading blank.
fn shared_text<'a>(a: &'a str, b: &str) -> &'a str {
    let differs = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b).map(|((index, _), _)| index);
    let differs = differs.unwrap_or(a.len().min(b.len()));
    let inside = |text: &str, end: usize| {
        let ends_word = |letter: char| letter.is_alphanumeric() || "'\u{2019}_".contains(letter);
        let next = text[end..].chars().next();
        next.is_none_or(|next| ends_word(next) && text[..end].chars().next_back().is_some_and(ends_word))
    };
    // A mark has no blanks, and begins where the last `<` has no `>` behind it.
    let mark = a[..differs].rfind('<').filter(|begin| !a[*begin..differs].contains(['>', ' ', '\n']));
    let most = mark.unwrap_or(differs);
    let ends = a[..most].char_indices().rev().map(|(index, _)| index);
    let end = std::iter::once(most).chain(ends).find(|end| !inside(a, *end) && !inside(b, *end));
    a[..end.unwrap_or(0)].trim_end_matches(' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: Columns<'_> = Columns {
        prompt: "prompt",
        completion: "completion",
        chosen: "chosen",
        rejected: "rejected",
        label: "label",
        system: "",
    };

    fn read(kind: RowKind, row: Value) -> Result<Given, String> {
        let Value::Object(row) = row else { panic!("a row is an object") };
        Given::read(kind, &COLUMNS, &row)
    }

    fn user(text: &str) -> Value {
        json!({"role": "user", "content": text})
    }

    fn assistant(text: &str) -> Value {
        json!({"role": "assistant", "content": text})
    }

    fn conversation(question: &str) -> PromptInput {
        PromptInput::Messages(vec![Message::user(question)])
    }

    #[test]
    fn a_demonstration_is_a_column_or_the_last_turn() {
        let text = read(RowKind::Demonstrations, json!({"prompt": "1+1?", "completion": "2"})).unwrap();
        assert_eq!((text.prompt, text.texts), (None, vec![(COMPLETION, "2".into())]));
        let turn = read(RowKind::Demonstrations, json!({"prompt": "1+1?", "completion": [assistant("2")]})).unwrap();
        assert_eq!((turn.prompt, turn.texts), (None, vec![(COMPLETION, "2".into())]));
        let whole = read(RowKind::Demonstrations, json!({"messages": [user("1+1?"), assistant("2")]})).unwrap();
        assert_eq!((whole.prompt, whole.texts), (Some(conversation("1+1?")), vec![(COMPLETION, "2".into())]));
        assert_eq!(whole.columns, ["messages"]);
    }

    #[test]
    fn a_label_is_a_truth_value_or_refused() {
        let row = |label: Value| json!({"prompt": "1+1?", "completion": "2", "label": label});
        for (value, label) in [
            (json!(true), true),
            (json!(1), true),
            (json!(1.0), true),
            (json!("True"), true),
            (json!("1"), true),
            (json!(false), false),
            (json!(0), false),
            (json!(0.0), false),
            (json!("false"), false),
            (json!("0"), false),
        ] {
            let given = read(RowKind::Labelled, row(value.clone())).unwrap();
            assert_eq!(
                (given.label, given.columns),
                (Some(label), vec!["completion".into(), "label".into()]),
                "{value}"
            );
        }
        for value in [json!(2), json!(-1), json!(0.5), json!("good"), json!([]), json!("")] {
            let problem = read(RowKind::Labelled, row(value.clone())).unwrap_err();
            assert!(problem.contains("`label` must be true or false, or 1 or 0, but is"), "{value}: {problem}");
        }
        assert_eq!(read(RowKind::Labelled, row(json!(null))).unwrap_err(), "`label` is null");
        let other = read(RowKind::Labelled, json!({"prompt": "a", "completion": "b", "good": true})).unwrap_err();
        assert!(other.contains("no column `label` for labels, only `prompt`, `completion`, `good`"), "{other}");
        // What is imitated needs no label.
        assert_eq!(read(RowKind::Demonstrations, row(json!(0))).unwrap().label, None);
    }

    #[test]
    fn a_column_that_is_null_is_said_to_be_null() {
        let row = json!({"prompt": "a", "chosen": "b", "rejected": null});
        assert_eq!(read(RowKind::Pairs, row).unwrap_err(), "`rejected` is null");
        let row = json!({"prompt": "a", "completion": null});
        assert_eq!(read(RowKind::Demonstrations, row).unwrap_err(), "`completion` is null");
    }

    #[test]
    fn the_same_conversation_without_its_answer_is_a_prompt() {
        let given = read(RowKind::Prompts, json!({"messages": [user("1+1?"), assistant("2")]})).unwrap();
        assert_eq!((given.prompt, given.texts), (Some(conversation("1+1?")), vec![]));
        assert_eq!(read(RowKind::Prompts, json!({"prompt": "a", "messages": 5})).unwrap(), Given::default());
    }

    #[test]
    fn a_pair_may_hold_its_prompt() {
        let texts = || vec![(CHOSEN, "2".to_owned()), (REJECTED, "3".to_owned())];
        let own = read(RowKind::Pairs, json!({"prompt": "1+1?", "chosen": "2", "rejected": "3"})).unwrap();
        assert_eq!((own.prompt, own.texts), (None, texts()));
        let turns = json!({"chosen": [user("1+1?"), assistant("2")], "rejected": [user("1+1?"), assistant("3")]});
        let turns = read(RowKind::Pairs, turns).unwrap();
        assert_eq!((turns.prompt, turns.texts), (Some(conversation("1+1?")), texts()));
        // The blank before each answer stays with the answer.
        let text = json!({"chosen": "Human: 1+1?\n\nAssistant: 2", "rejected": "Human: 1+1?\n\nAssistant: 3"});
        let text = read(RowKind::Pairs, text).unwrap();
        assert_eq!(text.prompt, Some(PromptInput::Text("Human: 1+1?\n\nAssistant:".into())));
        assert_eq!(text.texts, [(CHOSEN, " 2".to_owned()), (REJECTED, " 3".to_owned())]);
    }

    #[test]
    fn equal_completions_keep_their_last_turn() {
        let turns = json!({"chosen": [user("1+1?"), assistant("2")], "rejected": [user("1+1?"), assistant("2")]});
        assert_eq!(read(RowKind::Pairs, turns).unwrap().prompt, Some(conversation("1+1?")));
    }

    #[test]
    fn texts_are_cut_between_words_and_marks() {
        assert_eq!(shared_text("ä b", "ä c"), "ä");
        assert_eq!(shared_text("aé", "aè"), "");
        // Both rests are words.
        assert_eq!(shared_text("A: I can", "A: I can't"), "A: I");
        assert_eq!(shared_text("A: I cannot", "A: I can help"), "A: I");
        assert_eq!(shared_text("A:12", "A:13"), "A:");
        assert_eq!(shared_text("A:\nx", "A:\ny"), "A:\n");
        assert_eq!(shared_text("ab", "ab and more"), "");
        // A mark stays whole.
        assert_eq!(shared_text("say<|im_start|>x", "say<|im_st"), "say");
        assert_eq!(shared_text("say<|im_end|>x", "say<|im_end|>y"), "say<|im_end|>");
        assert_eq!(shared_text("if 1 < 2: a", "if 1 < 2: b"), "if 1 < 2:");
    }

    #[test]
    fn errors_name_the_missing_column() {
        let problem = |kind, row| read(kind, row).unwrap_err();
        let text = problem(RowKind::Demonstrations, json!({"prompt": "a", "complation": "b"}));
        assert!(text.contains("no column `completion`") && text.contains("did you mean `complation`?"), "{text}");
        assert!(text.contains("nor is there a conversation in `messages`"), "{text}");
        let text = problem(RowKind::Demonstrations, json!({"messages": [user("a")]}));
        assert!(text.contains("`messages` must end with a turn of the assistant"), "{text}");
        let text = problem(RowKind::Demonstrations, json!({"messages": [assistant("a")]}));
        assert!(text.contains("nothing but the answer"), "{text}");
        let text = problem(RowKind::Pairs, json!({"prompt": "a", "chosen": "b"}));
        assert!(text.contains("no column `rejected`"), "{text}");
        let text = problem(RowKind::Pairs, json!({"prompt": "a", "chosen": "b", "rejected": [assistant("c")]}));
        assert!(text.contains("both be text or both be conversations"), "{text}");
        let text = problem(RowKind::Pairs, json!({"chosen": "b", "rejected": "c"}));
        assert!(text.contains("do not begin alike"), "{text}");
        let two = json!({"chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
            "rejected": [user("a"), assistant("x")]});
        assert!(problem(RowKind::Pairs, two).contains("`chosen` has 3 turns"));
        let text = problem(RowKind::Pairs, json!({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}));
        assert!(text.contains("`margin` must be a number"), "{text}");
    }
}
