//! The nouns of proxrl: what the rooms hand to each other.
//!
//! No tensors and no I/O live here, so everything may depend on it and its tests need no libtorch.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | prompt | what the model is asked, as text or as chat messages |
//! | sample | one completion drawn for a prompt: token ids, mask, behaviour log-probabilities, finish reason |
//! | group | the samples drawn for one prompt in one step by one policy |
//! | verdict | the reward of one sample, part by part; a part that could not be judged is absent, never zero |
//! | behaviour policy | the policy that drew a sample; its log-probabilities are stored with the sample |
//! | proximal policy | the policy at the start of a training step, around which ratios are clipped |
//! | reference policy | the fixed policy that a KL penalty pulls towards: the base model with its adapter off |
//! | step | one round of the training loop: collect, score, store, update |
//! | update | one optimizer step; a training step holds one or more |

mod group;
mod hex;
mod metrics;
mod policy;
mod prompt;
mod reward;
mod sample;
mod seed;

pub use group::{Group, GroupError, ScoredGroup};
pub use hex::hex;
pub use metrics::Metrics;
pub use policy::PolicyVersion;
pub use prompt::{Message, Preference, Prompt, PromptInput};
pub use reward::{COMPARISON, Part, PartStatus, Rival, Verdict};
pub use sample::{Finish, Sample, SamplerSettings, Token};
pub use seed::Seed;
