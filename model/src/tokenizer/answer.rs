//! The ids of a given answer, as the model would have had to sample them.
//!
//! The rendered conversation with the answer must begin with the rendered prompt; the rest is the answer. It ends with
//! the end-of-sequence token that the template writes after it (or with the model's own, if the template writes none),
//! because a sampler stops there; line breaks that templates add after it are not part of the answer.

use super::{Tokenizer, begins_the_answer};
use crate::chat_template::Ending;
use crate::{Error, Result};
use schema::{Message, Prompt, PromptInput, Token};

impl Tokenizer {
    /// The ids of `answer` to `prompt`, which follow those of [`Tokenizer::prompt_ids`], with the end-of-sequence
    /// token.
    ///
    /// Prompt and answer are tokenized together. If a token would cross the border between them, the answer is
    /// tokenized by itself: a sampler cannot sample half a token either.
    ///
    /// # Errors
    /// If the prompt or the answer cannot be encoded, or the chat template writes the question differently once it is
    /// answered.
    pub fn answer_ids(&self, prompt: &Prompt, answer: &str) -> Result<Vec<Token>> {
        let asked = self.prompt_ids(prompt)?;
        let mut ids = match &prompt.input {
            PromptInput::Text(text) => {
                match self.encode_with_special(&format!("{text}{answer}"))?.strip_prefix(&asked[..]) {
                    Some(rest) => rest.to_vec(),
                    None => self.encode(answer)?,
                }
            }
            PromptInput::Messages(messages) => self.turn_ids(messages, answer, &asked)?,
        };
        if let Some(last) = ids.iter().rposition(|id| self.eos.contains(id)) {
            ids.truncate(last + 1);
        } else {
            ids.extend(self.eos.first());
        }
        Ok(ids)
    }

    /// The ids that the template writes after the opening of the assistant's turn, or after its given beginning.
    fn turn_ids(&self, messages: &[Message], answer: &str, asked: &[Token]) -> Result<Vec<Token>> {
        let (whole, ending) = match messages.split_last() {
            Some((last, before)) if begins_the_answer(messages) => {
                let turn = Message { content: format!("{}{answer}", last.content), ..last.clone() };
                ([before, &[turn]].concat(), Ending::InsideLastMessage)
            }
            _ => {
                let turn = Message { role: "assistant".into(), content: answer.into() };
                ([messages, &[turn]].concat(), Ending::AssistantOpening)
            }
        };
        let whole = self.render(&whole, Ending::LastMessage)?;
        if let Some(rest) = self.encode(&whole)?.strip_prefix(asked) {
            return Ok(rest.to_vec());
        }
        let opened = self.render(messages, ending)?;
        let rest = whole.strip_prefix(&opened).ok_or_else(|| {
            Error::input(
                "the model's chat template writes a question differently once it is answered, so an answer cannot be \
                 told from its question; use another chat template, or prompts of plain text (`as = \"text\"`)",
            )
        })?;
        self.encode(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_template::ChatTemplate;
    use std::collections::BTreeMap;

    fn bytes(text: &str) -> Vec<Token> {
        text.bytes().map(Token::from).collect()
    }

    #[test]
    fn an_answer_ends_with_the_templates_end_of_turn() {
        // ChatML writes a line break after `<|im_end|>` (257), which is not part of the answer.
        let ids = Tokenizer::bytes().answer_ids(&Prompt::user("1+1?"), "\n2").unwrap();
        assert_eq!(ids, [&bytes("\n2")[..], &[257]].concat());
        let ids = Tokenizer::bytes().answer_ids(&Prompt::text("1+1="), " 2").unwrap();
        assert_eq!(ids, [&bytes(" 2")[..], &[257]].concat());
    }

    #[test]
    fn an_answer_goes_on_where_the_prompt_has_begun_it() {
        let turns = vec![Message::user("1+1?"), Message { role: "assistant".into(), content: "It is".into() }];
        let prompt = Prompt { input: PromptInput::Messages(turns), ..Prompt::user("") };
        let ids = Tokenizer::bytes().answer_ids(&prompt, " 2").unwrap();
        assert_eq!(ids, [&bytes(" 2")[..], &[257]].concat());
    }

    #[test]
    fn an_empty_answer_is_its_end() {
        assert_eq!(Tokenizer::bytes().answer_ids(&Prompt::user("1+1?"), "").unwrap(), [257]);
    }

    fn with_template(source: &str) -> Tokenizer {
        let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
        Tokenizer { template: Some(template), ..Tokenizer::bytes() }
    }

    #[test]
    fn a_template_without_an_end_gets_the_models() {
        let tokenizer = with_template(
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
        );
        assert_eq!(tokenizer.answer_ids(&Prompt::user("a"), "b").unwrap(), [&bytes("b")[..], &[257]].concat());
    }

    #[test]
    fn a_template_that_rewrites_the_question_is_refused() {
        let tokenizer = with_template("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}");
        let error = tokenizer.answer_ids(&Prompt::user("a"), "b").unwrap_err();
        assert!(error.is_input() && error.to_string().contains("differently once it is answered"), "{error}");
    }
}
