//! The nouns of proxrl: the data that the crates hand to each other.
//!
//! No tensors and no I/O live here, so everything may depend on it and its tests need no libtorch.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | prompt | the input of the model, as text or as chat messages |
//! | sample | one completion of a prompt: token ids, mask, behaviour log-probabilities, finish reason |
//! | group | the samples of one prompt in one step by one policy |
//! | reward function | a function that grades samples; its value for a sample is a grade |
//! | judge | compares two samples; its result is a comparison |
//! | grade | a reward function's value for one sample, or the reason why it is missing; never a zero in its place |
//! | comparison | a judge's probability that one sample beats another; 0.5 is a tie |
//! | win rate | the mean of a sample's comparisons; a reward where no other is configured |
//! | verdict | the grades of one sample, one per reward function, and its comparisons |
//! | scoring | one pass of grading over stored samples; scoring 0 is the one that training saw |
//! | advantage | the weight of a sample or token in the policy gradient, such as its reward less the mean of its group |
//! | log-probs | the log-probabilities that a policy gives the tokens of a sample |
//! | behaviour policy | the policy that a sample came from; its log-probabilities are stored with the sample |
//! | proximal policy | the policy at the start of a training step, around which ratios are clipped |
//! | reference policy | the fixed policy that a KL penalty pulls towards: the base model with its adapter off |
//! | EMA policy | the exponential moving average of the trained policy's adapter |
//! | opponent | the other policy that samples the same prompts, for methods that play against one |
//! | step | one round of the training loop: collect, reward, compare, store, learn |
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
