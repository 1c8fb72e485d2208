//! The parts of a run, built from its config; or an error that says what is missing.

use crate::algorithm::{self, Compares, Needs, Opponent};
use crate::batch::Reads;
use crate::checkpoint::restore::start_from;
use crate::collected::Collected;
use crate::config::{Config, Replay};
use crate::evaluate::pool;
use crate::evaluate::{HeldOut, HeldOutEvaluation};
use crate::grading::RewardNetwork;
use crate::judge::PairComparer;
use crate::judge::preference_model;
use crate::sampling::{Examples, Fresh, Offline, Past, Reader, Replayed, RunContext, Source, replays};
use crate::{Error, Result};
use model::Policy;
use model::adapter::Adapter;
use model::cache::KvCache;
use reward::WeightedSum;
use rollout::collector::{Collector, Inline};
use rollout::prompts::{Epochs, PromptSource, RowKind, Sources};
use schema::{Prompt, PromptInput, Seed};

/// The parts of a run.
pub(crate) struct Plan {
    pub(crate) policy: Policy,
    pub(crate) source: SourcePlan,
    pub(crate) reward: WeightedSum,
    pub(crate) judge: Option<PairComparer>,
    pub(crate) evaluation: Option<HeldOutEvaluation>,
    /// The first prompt of the run, for an estimate of lengths.
    first_prompt: Prompt,
}

impl Plan {
    /// Builds what the config names: cheap things first, so that a wrong one is refused before weights are read.
    pub(crate) fn build(config: &Config) -> Result<Self> {
        let seed = Seed::new(config.seed);
        check_rewards(&config.reward)?;
        check_judge(config)?;
        pool::check(config)?;
        config.share.check()?;
        let algorithm = algorithm::build(&config.algorithm)?;
        let needs = algorithm.needs();
        let reader = Reader::new(needs.samples);
        let rows = reader.map_or(RowKind::Prompts, Reader::rows);
        let Sources { train, held_out } = config.prompts.open_rows(rows, &seed.child("prompts"))?;
        let count = held_out.as_ref().map_or(Ok(0), |source| held_out_count(source, config))?;
        let first_prompt = train.prompt(0)?;
        let policy = policy(config)?;
        if needs.samples.are_sampled() {
            let sources = [("prompts", Some(&train)), ("held-out prompts", held_out.as_ref())];
            for (what, source) in sources.into_iter().filter_map(|(what, source)| Some((what, source?))) {
                check_lengths(what, source, config, &policy)?;
            }
            let text = policy.tokenizer().prompt_text(&first_prompt)?;
            config.reward.iter().try_for_each(|reward| reward.check_prompt(&text))?;
        }
        let reward = rewards(config, &policy)?;
        let judge = pair_comparer(config, needs.samples.compares(), &policy)?;
        let evaluation = held_out.filter(|_| count > 0).map(|source| {
            let prompts = (0..count).map(|index| source.prompt(index)).collect::<rollout::Result<Vec<Prompt>>>()?;
            let examples = match reader {
                Some(reader) => reader.read(prompts.clone(), &policy)?.examples,
                None => Vec::new(),
            };
            let examples = Collected::Examples(examples);
            let answers = answers(config, &needs, &seed).map(|answers| HeldOut { prompts, ..answers });
            Ok::<_, Error>(HeldOutEvaluation { answers, examples })
        });
        let rollout = &config.rollout;
        let prompts = Epochs::new(train, rollout.prompts_per_step, seed.child("epochs"));
        let rules = config.replay.clone().unwrap_or_default();
        let past = Past::find(&config.store.url, &rules, policy.identity())?;
        let offline = past.filter(|_| rules.offline);
        let source = match (reader, offline) {
            (Some(reader), _) => SourcePlan::Examples(Examples::new(prompts, reader, &policy)),
            (None, Some(past)) => {
                let group_size = needs.samples.group_size().unwrap_or(1);
                SourcePlan::Offline(Offline::new(
                    past,
                    rules,
                    rollout.prompts_per_step,
                    group_size,
                    seed.child("replay"),
                ))
            }
            (None, None) => SourcePlan::Fresh {
                prompts,
                opponent: needs.samples.opponent().map(|opponent| opponent_of(&policy, opponent, config)),
                replays: rules.fill.is_some() || replays(&*algorithm, config.steps),
                past,
                rules,
            },
        };
        Ok(Self { policy, source, reward, judge, evaluation: evaluation.transpose()?, first_prompt })
    }
}

/// Prompts of a file that are tokenized before a run begins, beside all that may be too long. Long files would delay the
/// first step otherwise.
const TOKENIZED: u64 = 20_000;

/// The beginning of a prompt that names it in an error, in characters.
const SHOWN: usize = 40;

/// Refuses prompts that the chat template does not take, or that leave no room in the model's context. Found in the step
/// that deals them out, they would end a run that cannot go on.
fn check_lengths(what: &str, source: &PromptSource, config: &Config, policy: &Policy) -> Result<()> {
    let Some(count) = source.len() else { return Ok(()) };
    let context = policy.network().dimensions().max_position as usize;
    let new = config.rollout.max_new_tokens as usize;
    for index in 0..count {
        let prompt = source.prompt(index)?;
        let letters = match &prompt.input {
            PromptInput::Text(text) => text.len(),
            PromptInput::Messages(turns) => turns.iter().map(|turn| turn.content.len()).sum(),
        };
        // A token has a byte at least; beside the turns' text there are the template's own words.
        if index >= TOKENIZED && 2 * letters + new < context {
            continue;
        }
        let shown: String = prompt.question().chars().take(SHOWN).collect();
        let at = |problem: &dyn std::fmt::Display| {
            Error::input(format!("{what}: prompt {} of {count} (`{}…`): {problem}", index + 1, shown.escape_debug()))
        };
        let tokens = policy.tokenizer().prompt_ids(&prompt).map_err(|error| at(&error))?.len();
        if tokens + new > context {
            return Err(at(&format!(
                "its {tokens} tokens and rollout.max_new_tokens = {new} exceed the model's context of {context} tokens; leave the row out, or lower rollout.max_new_tokens"
            )));
        }
    }
    Ok(())
}

/// The source of samples, as far as it can be built before the run has a folder.
pub(super) enum SourcePlan {
    /// A data set.
    Examples(Examples),
    /// The stored samples of another run.
    Offline(Offline),
    /// The policy.
    Fresh {
        prompts: Epochs,
        /// Samples what the policy's own samples are compared with.
        opponent: Option<Box<dyn Collector>>,
        /// `true` if old groups or rows come back in any step.
        replays: bool,
        /// Another run, whose groups are replayed too.
        past: Option<Past>,
        /// The rules by which they come back.
        rules: Replay,
    },
}

impl SourcePlan {
    /// Opens the source of a run, which samples from `policy` until another is published.
    ///
    /// # Errors
    /// If the collector cannot be opened.
    pub(super) fn open(self, context: &RunContext<'_>, policy: &Policy) -> Result<Box<dyn Source>> {
        Ok(match self {
            Self::Examples(examples) => Box::new(examples),
            Self::Offline(offline) => Box::new(offline),
            Self::Fresh { prompts, opponent, replays, past, rules } => {
                let fresh = Fresh::open(context, prompts, opponent, policy)?;
                if replays {
                    Box::new(Replayed::new(fresh, past, rules, Seed::new(context.config.seed).child("replay")))
                } else {
                    Box::new(fresh)
                }
            }
        })
    }
}

/// The policy that a config begins with.
pub(crate) fn policy(config: &Config) -> Result<Policy> {
    let mut policy = Policy::load(&config.model, &Seed::new(config.seed))?;
    if !config.model.adapter_from.is_empty() {
        start_from(&config.model, &mut policy)?;
    }
    Ok(policy)
}

/// The collector of the samples that the policy's own are compared with.
fn opponent_of(policy: &Policy, opponent: Opponent, config: &Config) -> Box<dyn Collector> {
    let started = !config.model.adapter_from.is_empty();
    let adapter = if started { policy.adapter().copy() } else { Adapter::none() };
    let reference = policy.with_adapter(adapter);
    let engine = config.rollout.engine.clone();
    Box::new(match opponent {
        Opponent::Reference => Inline::fixed(&reference, engine),
        Opponent::Mixture { reference: share } => Inline::mixture(policy, &reference, share, engine),
    })
}

/// Refuses errors in the rewards that can be found before a network is loaded.
fn check_rewards(rewards: &[reward::Config]) -> Result<()> {
    for model in rewards.iter().filter_map(|reward| reward.model.as_ref()) {
        RewardNetwork::check(&model.path)?;
    }
    let rules: Vec<reward::Config> = rewards.iter().filter(|reward| reward.model.is_none()).cloned().collect();
    // Whether any reward carries weight can only be said of all of them.
    if !rules.is_empty() && rules.len() == rewards.len() {
        reward::build(&rules)?;
    }
    Ok(())
}

/// The rewards of a config, whose models share the policy's base where they can.
fn rewards(config: &Config, policy: &Policy) -> Result<WeightedSum> {
    if config.reward.is_empty() {
        return Ok(WeightedSum::nothing());
    }
    let mut open = |model: &reward::ModelConfig| {
        let opened = RewardNetwork::open(&model.path, policy, &config.model, config.micro_batch_tokens);
        let opened = opened.map_err(|error| in_rewards_words(&error))?;
        Ok(Box::new(opened) as Box<dyn reward::Reward>)
    };
    Ok(reward::build_with(&config.reward, &mut open)?)
}

/// Refuses errors in the judge that can be found before a network is loaded.
fn check_judge(config: &Config) -> Result<()> {
    let Some(judge) = &config.judge else { return Ok(()) };
    judge.check()?;
    judge.model.as_ref().map_or(Ok(()), |model| preference_model::check(&model.path))
}

/// The judge of a config, whose network shares the policy's base where it can. Where the method draws nothing, the judge
/// compares held-out answers alone.
fn pair_comparer(config: &Config, compares: Option<Compares>, policy: &Policy) -> Result<Option<PairComparer>> {
    let Some(judge) = &config.judge else { return Ok(None) };
    let mut open = |model: &reward::ModelConfig, temperature| {
        preference_model::open(&model.path, temperature, policy, &config.model, config.micro_batch_tokens)
            .map_err(|error| in_rewards_words(&error))
    };
    let fair = judge.build(&mut open)?;
    let weight = if config.reward.is_empty() { 1.0 } else { 0.0 };
    Ok(Some(PairComparer::new(fair, compares.unwrap_or(Compares::Counterparts), weight)))
}

/// An error of opening a network as the reward crate puts it.
fn in_rewards_words(error: &Error) -> reward::Error {
    if error.is_input() { reward::Error::input(error.to_string()) } else { reward::Error::Runtime(error.to_string()) }
}

/// Number of held-out prompts that the config asks for.
fn held_out_count(source: &PromptSource, config: &Config) -> Result<u64> {
    let all = source.len().ok_or_else(|| Error::input("the held-out prompts are endless; set evaluate.prompts"))?;
    Ok(if config.evaluate.prompts == 0 { all } else { all.min(config.evaluate.prompts as u64) })
}

/// The settings of answers to held-out prompts; `None` if nothing grades or compares answers, or the adapter has a scalar
/// head.
fn answers(config: &Config, needs: &Needs, seed: &Seed) -> Option<HeldOut> {
    let evaluate = &config.evaluate;
    let looked_at = !config.reward.is_empty() || !evaluate.against.is_empty();
    (looked_at && needs.reads == Reads::Tokens).then(|| HeldOut {
        prompts: Vec::new(),
        settings: config.rollout.sampler(),
        threshold: evaluate.threshold,
        samples: evaluate.samples,
        beta: evaluate.beta,
        seed: seed.child("evaluate"),
        engine: config.rollout.engine.clone(),
    })
}

/// Sizes of a run, computed from its config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Samples of a prompt; 0 if its completions come from a data set.
    pub samples_per_prompt: u64,
    /// Samples of one step.
    pub samples_per_step: u64,
    /// Optimizer updates in one step.
    pub updates_per_step: u64,
    /// Samples of the whole run.
    pub samples: u64,
    /// Sampled tokens of the whole run if every completion reaches the limit.
    pub max_generated_tokens: u64,
    /// Held-out prompts.
    pub held_out: usize,
    /// Frozen numbers.
    pub parameters: u64,
    /// Trained numbers.
    pub trained_parameters: u64,
    /// Bytes of the frozen weights.
    pub weight_bytes: u64,
    /// Bytes of the adapter, its gradients and the optimizer's two moments, all f32.
    pub adapter_bytes: u64,
    /// Bytes of keys and values while sampling.
    pub cache_bytes: u64,
    /// Bytes that one micro-batch keeps for its backward pass, and the chunks of logits.
    pub activation_bytes: u64,
}

impl Estimate {
    /// Bytes at the peak. Sampling and training do not overlap, but the cache is kept between steps.
    pub fn peak_bytes(&self) -> u64 {
        // What the process holds besides tensors: libtorch's code, the tokenizer, buffers.
        const REST: u64 = 500_000_000;
        self.weight_bytes + self.adapter_bytes + self.cache_bytes + self.activation_bytes + REST
    }
}

/// Computes the sizes of a run. Loads the model, so that its sizes are those of the file.
///
/// # Errors
/// If the config cannot be built.
pub fn estimate(config: &Config) -> Result<Estimate> {
    let plan = Plan::build(config)?;
    let (rollout, dimensions) = (&config.rollout, plan.policy.network().dimensions());
    let algorithm = algorithm::build(&config.algorithm)?;
    let drawn = algorithm.needs().samples.are_sampled();
    let updates_per_step = algorithm.schedule(1).updates();
    let groups = if algorithm.needs().samples.opponent().is_some() { 2 } else { 1 };
    let samples_per_prompt = if drawn { groups * rollout.group_size as u64 } else { 0 };
    let samples_per_step = rollout.prompts_per_step as u64 * samples_per_prompt;
    let answers = plan.evaluation.as_ref().is_some_and(|evaluation| evaluation.answers.is_some());
    let parameters = dimensions.parameters() as u64;
    let trained_parameters = plan.policy.adapter().parameters() as u64;
    let bytes = plan.policy.kind().elt_size_in_bytes() as u64;
    let first = plan.policy.tokenizer().prompt_ids(&plan.first_prompt)?;
    let capacity = (first.len() + rollout.max_new_tokens as usize).next_multiple_of(64);
    let cache = KvCache::bytes(dimensions, rollout.engine.max_running, capacity, plan.policy.kind());
    // Saved per token and layer: the residual stream at both norms, queries, keys and values, attention's output, gate
    // and up. The gradient of one layer takes about as much again.
    let widths = 2 * dimensions.hidden
        + 2 * (dimensions.heads + dimensions.kv_heads) * dimensions.head_dim
        + 2 * dimensions.intermediate;
    let kept = if config.model.gradient_checkpointing {
        dimensions.layers * dimensions.hidden + 2 * widths
    } else {
        (dimensions.layers + 1) * widths
    };
    let activations = config.micro_batch_tokens as u64 * kept as u64 * bytes;
    // Four chunks of 64 MiB live side by side in the gradient of the head.
    let logits = 4 << 26;
    Ok(Estimate {
        samples_per_prompt,
        samples_per_step,
        updates_per_step,
        samples: samples_per_step * config.steps,
        max_generated_tokens: samples_per_step * config.steps * u64::from(rollout.max_new_tokens),
        held_out: plan.evaluation.as_ref().map_or(0, HeldOutEvaluation::len),
        parameters,
        trained_parameters,
        weight_bytes: parameters * plan.policy.dtype().kind().elt_size_in_bytes() as u64,
        adapter_bytes: trained_parameters * 4 * 4,
        cache_bytes: if drawn || answers { cache } else { 0 },
        activation_bytes: activations + logits,
    })
}
