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
//! | grade | a reward function's value for one sample, or the reason why it is missing; never a zero in its place |
//! | comparison | a judge's probability that one sample beats another; 0.5 is a tie |
//! | verdict | the grades of one sample, one per reward function, and its comparisons |
//! | behaviour policy | the policy that drew a sample; its log-probabilities are stored with the sample |
//! | proximal policy | the policy at the start of a training step, around which ratios are clipped |
//! | reference policy | the fixed policy that a KL penalty pulls towards: the base model with its adapter off |
//! | step | one round of the training loop: collect, score, store, update |
//! | update | one optimizer step; a training step holds one or more |

mod comparison;
mod grade;
mod group;
mod hex;
mod metrics;
mod policy;
mod prompt;
mod sample;
mod seed;
mod verdict;

pub use comparison::{Comparison, Rival};
pub use grade::Grade;
pub use group::{GradedGroup, Group, GroupError};
pub use hex::hex;
pub use metrics::Metrics;
pub use policy::PolicyVersion;
pub use prompt::{Message, Preference, Prompt, PromptInput};
pub use sample::{Finish, Sample, SamplerSettings, Token};
pub use seed::Seed;
pub use verdict::{RewardPart, Verdict};
