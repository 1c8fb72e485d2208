//! The rules: reward functions that look at the text alone.
//!
//! One file per rule. A new one needs its file, with a `Config` whose `build` makes it, and its line in the list below.

use crate::{Result, Reward};
use serde::{Deserialize, Serialize};

/// Declares the rules' modules, the config enum over them (externally tagged, so that a config names a rule as a
/// table's key), and the functions that name and build them.
macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $variant:ident in $module:ident;)+) => {
        $(pub mod $module;)+

        /// A rule and its settings, as in `rule.math_answer = {}`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Config {
            $($(#[doc = $doc])+ $variant($module::Config),)+
        }

        impl Config {
            /// The rule's name, as configs write it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($module),)+
                }
            }

            /// Checks the settings and makes the rule.
            ///
            /// # Errors
            ///
            /// Fails if the rule refuses a setting.
            pub fn build(&self) -> Result<Box<dyn Reward>> {
                Ok(match self {
                    $(Self::$variant(config) => Box::new(config.build()?),)+
                })
            }

            /// Every rule with its default settings. Some of these do not build: they need a setting to mean anything.
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant($module::Config::default()),)+]
            }
        }
    };
}

rules! {
    /// The grade that an external program prints.
    Command in command;
    /// 1 if the completion is the answer, character by character.
    ExactMatch in exact_match;
    /// 1 if the completion is made of tagged sections in a given order.
    Format in format;
    /// A penalty for being longer than, or far from, a length.
    Length in length;
    /// 1 if the final answer has the value of the prompt's answer.
    MathAnswer in math_answer;
    /// The soft penalty of DAPO for coming near the token limit.
    Overlong in overlong;
    /// A value by whether a regular expression matches.
    Regex in regex;
    /// A penalty for saying the same again.
    Repetition in repetition;
}
