//! The command line of `proxrl bench`, and the one with which it starts itself again for a single part.

use clap::ValueEnum;
use std::path::PathBuf;

/// The options of `proxrl bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The parts to measure; all but growth if none is named.
    #[arg(value_enum)]
    pub parts: Vec<Part>,
    /// The model: a folder, a .gguf file, a name in the cache or a hub id; the config's if not given.
    #[arg(long, short, value_name = "PATH")]
    pub model: Option<String>,
    /// The config of a run that samples, whose model, rollout, algorithm and optimizer are measured.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Change one key of the config, such as `rollout.group_size=4`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Repetitions of each figure.
    #[arg(long, default_value_t = 3)]
    pub repetitions: usize,
    /// No further repetition of a figure begins after so many seconds.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Numbers of sequences that decode side by side.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128])]
    pub batches: Vec<usize>,
    /// Tokens of a prompt that decoding begins with.
    #[arg(long, default_value_t = 64)]
    pub prompt_tokens: usize,
    /// Tokens that are then sampled.
    #[arg(long, default_value_t = 64)]
    pub new_tokens: usize,
    /// Tokens of a row whose log-probabilities are computed, or that is trained on.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 512, 2048])]
    pub lengths: Vec<usize>,
    /// Tokens of all rows of an update together.
    #[arg(long, default_value_t = 2048)]
    pub tokens: usize,
    /// Leave out the batch of rows of unequal lengths.
    #[arg(long)]
    pub no_ragged: bool,
    /// Print one JSON object with every repetition.
    #[arg(long)]
    pub json: bool,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Tokens sampled per second, by the number of sequences that decode side by side.
    Decode,
    /// Prompt tokens per second.
    Prefill,
    /// Tokens per second whose log-probabilities are computed.
    Score,
    /// Tokens per second of forward, backward and update.
    Train,
    /// A step of the config: sample, grade, store, learn.
    Grpo,
    /// A step of DPO on 32 pairs of answers of 64 tokens to prompts of 64 tokens.
    Dpo,
    /// From the command to the first step.
    Startup,
    /// The cost of a token as groups and rows grow.
    Growth,
}

impl Part {
    /// The parts that are measured if none is named.
    pub const DEFAULT: [Self; 7] =
        [Self::Decode, Self::Prefill, Self::Score, Self::Train, Self::Grpo, Self::Dpo, Self::Startup];

    /// Returns the name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Args {
    /// Returns the command line that measures one part with the same options and prints it as JSON.
    pub(crate) fn of_child(&self, part: Part, repetitions: usize) -> Vec<String> {
        let list = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut words = vec!["bench".to_owned(), part.name(), "--json".into()];
        let mut option = |name: &str, value: String| words.push(format!("--{name}={value}"));
        option("repetitions", repetitions.to_string());
        option("seconds", self.seconds.to_string());
        option("batches", list(&self.batches));
        option("prompt-tokens", self.prompt_tokens.to_string());
        option("new-tokens", self.new_tokens.to_string());
        option("lengths", list(&self.lengths));
        option("tokens", self.tokens.to_string());
        self.model.iter().for_each(|model| option("model", model.clone()));
        self.config.iter().for_each(|config| option("config", config.display().to_string()));
        self.set.iter().for_each(|change| option("set", change.clone()));
        if self.no_ragged {
            words.push("--no-ragged".into());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Bench {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_command_line_of_a_child_means_the_same_options() {
        let line =
            "bench decode train --model m --set a=1 --set b=2 --config c.toml --batches 1,4 --tokens 99 --no-ragged";
        let args = Bench::parse_from(line.split(' ')).args;
        let child = args.of_child(Part::Train, 2);
        assert_eq!(child[0], "bench");
        let child = Bench::parse_from(child).args;
        assert_eq!((child.parts.as_slice(), child.repetitions, child.json), (&[Part::Train][..], 2, true));
        assert_eq!((&child.model, &child.config, &child.set), (&args.model, &args.config, &args.set));
        assert_eq!((&child.batches, &child.lengths), (&vec![1, 4], &args.lengths));
        assert_eq!((child.tokens, child.no_ragged, child.seconds), (99, true, args.seconds));
        assert_eq!((child.prompt_tokens, child.new_tokens), (args.prompt_tokens, args.new_tokens));
    }
}
