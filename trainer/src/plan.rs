//! What a config asks for, built: everything that the loop needs, or a sentence that says what is missing.

use crate::algorithm;
use crate::config::Config;
use crate::evaluate::HeldOut;
use crate::source::{Rollouts, Source};
use crate::{Error, Result};
use model::Policy;
use model::cache::KvCache;
use reward::WeightedSum;
use rollout::collector::Inline;
use rollout::prompts::{Epochs, PromptSource, Sources};
use schema::{Prompt, Seed};

/// The parts of a run.
pub(crate) struct Plan {
    pub(crate) policy: Policy,
    pub(crate) source: Box<dyn Source>,
    pub(crate) reward: WeightedSum,
    pub(crate) held_out: Option<HeldOut>,
    /// The first prompt of the run, for an estimate of lengths.
    first_prompt: Prompt,
}

impl Plan {
    /// Builds what the config names: cheap things first, so that a wrong one is refused before weights are read.
    pub(crate) fn build(config: &Config) -> Result<Self> {
        let seed = Seed::new(config.seed);
        let reward = reward::build(&config.reward)?;
        let Sources { train, held_out } = config.prompts.open(&seed.child("prompts"))?;
        let held_out = held_out.map(|source| held_out_prompts(&*source, config, &seed)).transpose()?.flatten();
        let first_prompt = train.prompt(0)?;
        let policy = Policy::load(&config.model, &seed)?;
        let rollout = &config.rollout;
        let source = Rollouts {
            collector: Box::new(Inline::new(&policy, rollout.engine.clone())),
            prompts: Epochs::new(train, rollout.prompts_per_step, seed.child("epochs")),
            prompts_per_step: rollout.prompts_per_step,
            group_size: rollout.group_size,
            settings: rollout.sampler(),
            seed: seed.child("rollout"),
        };
        Ok(Self { policy, source: Box::new(source), reward, held_out, first_prompt })
    }

    /// Names the policy after the step that made it and samples from it from now on.
    pub(crate) fn publish(&mut self, step: u64) -> Result<()> {
        self.policy.set_version(step);
        self.source.publish(&self.policy)
    }
}

fn held_out_prompts(source: &dyn PromptSource, config: &Config, seed: &Seed) -> Result<Option<HeldOut>> {
    let evaluate = &config.evaluate;
    let all = source.len().ok_or_else(|| Error::input("the held-out prompts are endless; set evaluate.prompts"))?;
    let count = if evaluate.prompts == 0 { all } else { all.min(evaluate.prompts as u64) };
    if count == 0 {
        return Ok(None);
    }
    let prompts = (0..count).map(|index| source.prompt(index)).collect::<rollout::Result<Vec<Prompt>>>()?;
    Ok(Some(HeldOut {
        prompts,
        settings: config.rollout.sampler(),
        threshold: evaluate.threshold,
        samples: evaluate.samples,
        seed: seed.child("evaluate"),
        engine: config.rollout.engine.clone(),
    }))
}

/// The arithmetic of a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Samples drawn in one step.
    pub samples_per_step: u64,
    /// Optimizer updates in one step.
    pub updates_per_step: u64,
    /// Samples drawn in the whole run.
    pub samples: u64,
    /// Tokens drawn in the whole run if every completion reaches the limit.
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

/// Computes what a config asks for. Loads the model, so that its sizes are those of the file.
pub fn estimate(config: &Config) -> Result<Estimate> {
    let plan = Plan::build(config)?;
    let (rollout, dimensions) = (&config.rollout, plan.policy.network().dimensions());
    let updates_per_step = algorithm::build(&config.algorithm)?.schedule(1).updates();
    let samples_per_step = (rollout.prompts_per_step * rollout.group_size) as u64;
    let parameters = dimensions.parameters() as u64;
    let trained_parameters = plan.policy.adapter().parameters() as u64;
    let bytes = plan.policy.kind().elt_size_in_bytes() as u64;
    let first = plan.policy.tokenizer().prompt_ids(&plan.first_prompt)?;
    let capacity = (first.len() + rollout.max_new_tokens as usize).next_multiple_of(64);
    // Saved per token and layer: the residual stream and its two norms, q, k, v, rotated q and k, attention's output,
    // gate, up, silu and their product, and each adapter's inner and outer product.
    let widths = 8 * dimensions.hidden
        + 4 * dimensions.heads * dimensions.head_dim
        + 4 * dimensions.kv_heads * dimensions.head_dim
        + 7 * dimensions.intermediate;
    let activations = config.micro_batch_tokens as u64 * (dimensions.layers * widths) as u64 * bytes;
    // Four chunks of 64 MiB live side by side in the gradient of the head.
    let logits = 4 << 26;
    Ok(Estimate {
        samples_per_step,
        updates_per_step,
        samples: samples_per_step * config.steps,
        max_generated_tokens: samples_per_step * config.steps * u64::from(rollout.max_new_tokens),
        held_out: plan.held_out.as_ref().map_or(0, |held_out| held_out.prompts.len()),
        parameters,
        trained_parameters,
        weight_bytes: parameters * bytes,
        adapter_bytes: trained_parameters * 4 * 4,
        cache_bytes: KvCache::bytes(dimensions, rollout.engine.max_running, capacity, plan.policy.kind()),
        activation_bytes: activations + logits,
    })
}
