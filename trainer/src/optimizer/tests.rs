//! Parity with `PyTorch` and the laws of the family.

use super::*;
use crate::prox::{Form, ThresholdScale};

/// The gradient of step `t` (from 1) in the fixture: a growing, a constant, a late and a tiny one.
fn fixture_gradient(t: u32) -> [f64; 4] {
    let t = f64::from(t);
    [0.1 * t, -0.2, if t < 3.0 { 0.0 } else { 3.0 }, 1e-4 * t]
}

const START: [f64; 4] = [0.5, -1.25, 2.0, 0.0];

fn leaf(values: &[f64], kind: Kind) -> Tensor {
    Tensor::from_slice(values).to_kind(kind).set_requires_grad(true)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double)).unwrap()
}

/// Sets the gradient of a parameter.
fn set_gradient(parameter: &mut Parameter, gradient: &[f64]) {
    parameter.tensor.zero_grad();
    let gradient = Tensor::from_slice(gradient).to_kind(parameter.tensor.kind());
    (&parameter.tensor * gradient).sum(None).backward();
}

fn run(optimizer: &mut dyn Optimizer, parameters: &mut [Parameter], steps: std::ops::RangeInclusive<u32>) {
    for t in steps {
        for parameter in parameters.iter_mut() {
            set_gradient(parameter, &fixture_gradient(t));
        }
        optimizer.step(parameters, 0.01).unwrap();
    }
}

fn close(actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() <= tolerance, "{actual:?} against {expected:?}");
    }
}

fn adamw(weight_decay: f64) -> AdamW {
    let gate = GateConfig { rule: GateRule::Adam, ..GateConfig::default() };
    AdamW::new(AdamWConfig { weight_decay, gate, ..AdamWConfig::default() }).unwrap()
}

fn shared() -> AdamW {
    AdamW::new(AdamWConfig::default()).unwrap()
}

/// One of each rule, with everything switched on.
fn every_rule() -> Vec<Box<dyn Fn() -> Box<dyn Optimizer>>> {
    let sgd = SgdConfig { weight_decay: 0.1, ..SgdConfig::default() };
    vec![
        Box::new(|| Box::new(adamw(0.1))),
        Box::new(|| Box::new(shared())),
        Box::new(move || Box::new(Sgd::new(sgd.clone()).unwrap())),
    ]
}

fn every_role(kind: Kind) -> Vec<Parameter> {
    [Role::Weight, Role::Undecayed, Role::Gate]
        .map(|role| Parameter::new(format!("layer.{role:?}"), leaf(&START, kind), role))
        .into()
}

#[test]
fn adamw_is_that_of_torch() {
    // torch 2.13.0: AdamW([p], lr=0.01, weight_decay=0.1), gradients as in `fixture_gradient`, after steps 1, 3 and 5.
    let after = [
        [0.489_500_001, -1.238_750_001, 1.998, -0.009_999_000_1],
        [0.469_299_310_9, -1.216_283_74, 1.987_617_862, -0.029_200_139_76],
        [0.449_094_309_3, -1.193_862_39, 1.967_303_896, -0.048_407_999_96],
    ];
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 3e-7)] {
        let mut parameters = [Parameter::new("w", leaf(&START, kind), Role::Weight)];
        let mut optimizer = adamw(0.1);
        for (steps, expected) in [1..=1, 2..=3, 4..=5].into_iter().zip(&after) {
            run(&mut optimizer, &mut parameters, steps);
            close(&values(&parameters[0].tensor), expected, tolerance);
        }
        let state = optimizer.state();
        assert_eq!(state.scalars["steps.w"], 5.0);
        assert_eq!(state.tensors[0].0, "first.w");
        close(&values(&state.tensors[0].1), &[0.131_441, -0.081_902, 0.813, 0.000_131_441], tolerance);
        let second = [0.000_549_500_269_9, 0.000_199_600_399_8, 0.026_973_009, 5.495_002_699e-10];
        close(&values(&state.tensors[1].1), &second, tolerance);
    }
}

#[test]
fn sgd_is_that_of_torch() {
    // torch 2.13.0: SGD([p], lr=0.01, momentum=0.9, weight_decay=0.1), the same gradients, after step 5.
    let mut parameters = [Parameter::new("w", leaf(&START, Kind::Double), Role::Weight)];
    let mut optimizer = Sgd::new(SgdConfig { weight_decay: 0.1, ..SgdConfig::default() }).unwrap();
    run(&mut optimizer, &mut parameters, 1..=5);
    let expected = [0.461_790_942_8, -1.207_382_361, 1.805_617_731, -3.165_249_735e-5];
    close(&values(&parameters[0].tensor), &expected, 1e-9);
}

/// Two steps of SoRA's gate optimizer: Adam, then the soft threshold.
fn gate_steps(form: Form, scale: ThresholdScale, threshold: f64) -> [Vec<f64>; 2] {
    let gate = leaf(&[0.5, -0.002, 0.0005, 0.0, -1.2], Kind::Double);
    let mut parameters = [Parameter::new("gate", gate, Role::Gate)];
    let mut optimizer = adamw(0.1);
    let threshold = scale.apply(threshold, 8e-4);
    [[0.1, -0.2, 0.05, 0.3, 0.0], [-0.1, -0.2, 0.01, 0.3, 0.02]].map(|gradient| {
        set_gradient(&mut parameters[0], &gradient);
        optimizer.step(&mut parameters, 8e-4).unwrap();
        let moved = form.apply(&parameters[0].tensor.detach(), threshold);
        tch::no_grad(|| parameters[0].tensor.copy_(&moved));
        values(&parameters[0].tensor)
    })
}

#[test]
fn gates_follow_the_published_optimizer() {
    for form in [Form::Textbook, Form::Published] {
        let [first, second] = gate_steps(form, ThresholdScale::Constant, 3e-4);
        close(&first, &[0.498_900_252_9, -0.000_900_126_5, 0.0, -0.000_499_915_7, -1.1997], 1e-9);
        close(&second, &[0.498_642_348_8, 0.0, -0.000_342_034_4, -0.000_999_856, -1.199_994_369_7], 1e-9);
        assert_eq!((first[2], second[1]), (0.0, 0.0));
    }
    let [first, second] = gate_steps(Form::Textbook, ThresholdScale::LearningRate, 0.1);
    let expected = [0.499_120_252_9, -0.001_120_126_5, -0.000_219_494_4, -0.000_719_915_7, -1.199_92];
    close(&first, &expected, 1e-9);
    let expected = [0.499_082_348_8, -0.000_240_215_9, -0.000_781_528_8, -0.001_439_856, -1.200_434_369_7];
    close(&second, &expected, 1e-9);
}

#[test]
fn gates_move_by_what_they_are_worth_beside_the_others() {
    let gates = |scale: f64| {
        let mut optimizer = shared();
        let gate = |name: &str, values: &[f64]| Parameter::new(name, leaf(values, Kind::Double), Role::Gate);
        let mut parameters = [gate("a.gate", &[1.0, 1.0]), gate("b.gate", &[1.0]), gate("critic.a.gate", &[1.0])];
        for gradients in [[&[-3.0, 1.0][..], &[0.0], &[100.0]], [&[-1.0, 1.0], &[2.0], &[100.0]]] {
            for (parameter, gradient) in parameters.iter_mut().zip(gradients) {
                set_gradient(parameter, &gradient.iter().map(|it| it * scale).collect::<Vec<_>>());
            }
            optimizer.step(&mut parameters, 0.1).unwrap();
        }
        parameters.map(|parameter| values(&parameter.tensor))
    };
    // Units: √(10/3), then √((0.999·0.001·10 + 0.001·6)/(1 − 0.999²)/3); momentum (0.9·0.1·g₁ + 0.1·g₂)/0.19.
    let first = (10.0f64 / 3.0).sqrt();
    let second = ((0.999 * 10.0 + 6.0) * 0.001 / (1.0 - 0.999f64.powi(2)) / 3.0).sqrt();
    let moved = |g1: f64, g2: f64| 1.0 - 0.1 * g1 / first - 0.1 * (0.09 * g1 + 0.1 * g2) / 0.19 / second;
    let [a, b, critic] = gates(1.0);
    close(&a, &[moved(-3.0, -1.0), moved(1.0, 1.0)], 1e-12);
    close(&b, &[moved(0.0, 2.0)], 1e-12);
    // A critic's gates share a unit of their own.
    close(&critic, &[0.8], 1e-12);
    for (a, b) in gates(1.0).iter().zip(&gates(1e-6)) {
        close(a, b, 1e-9);
    }
}

#[test]
fn no_gate_moves_by_more_than_ten_learning_rates() {
    let moved = |value: f64, full_size: usize| {
        let gate = Parameter { full_size, ..Parameter::new("a.gate", leaf(&[value], Kind::Double), Role::Gate) };
        let mut parameters = [gate];
        set_gradient(&mut parameters[0], &[3e-4]);
        shared().step(&mut parameters, 0.1).unwrap();
        value - values(&parameters[0].tensor)[0]
    };
    // Nine gates of ten are pruned; all but one in a million; and the last one is closed.
    for (value, full_size, expected) in [(1.0, 10, 0.1 * 10.0f64.sqrt()), (1.0, 1_000_000, 1.0), (0.0, 1, 1.0)] {
        assert!((moved(value, full_size) - expected).abs() < 1e-9, "{value} {full_size}");
    }
}

#[test]
fn every_rule_descends_a_quadratic() {
    for build in every_rule() {
        let mut optimizer = build();
        let mut parameters = [Parameter::new("w", leaf(&[3.0, -2.0], Kind::Double), Role::Undecayed)];
        let loss = |parameter: &Parameter| (&parameter.tensor - 1.0).square().sum(None);
        let before = loss(&parameters[0]).double_value(&[]);
        for _ in 0..400 {
            loss(&parameters[0]).backward();
            update(optimizer.as_mut(), &mut parameters, 0.02, 0.0).unwrap();
        }
        let after = loss(&parameters[0]).double_value(&[]);
        assert!(after < 1e-3 * before, "{before} to {after}");
    }
}

#[test]
fn a_rate_of_zero_changes_nothing() {
    for build in every_rule() {
        let mut parameters = every_role(Kind::Float);
        let before: Vec<_> = parameters.iter().map(|parameter| values(&parameter.tensor)).collect();
        for parameter in &mut parameters {
            set_gradient(parameter, &fixture_gradient(3));
        }
        build().step(&mut parameters, 0.0).unwrap();
        let after: Vec<_> = parameters.iter().map(|parameter| values(&parameter.tensor)).collect();
        assert_eq!(before, after);
    }
}

#[test]
fn saved_and_restored_goes_on_bit_for_bit() {
    for build in every_rule() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
            let (mut uninterrupted, mut parameters) = (build(), every_role(kind));
            run(uninterrupted.as_mut(), &mut parameters, 1..=2);

            let mut resumed = build();
            resumed.restore(uninterrupted.state()).unwrap();
            let mut copies: Vec<Parameter> = parameters
                .iter()
                .map(|p| Parameter::new(&p.name, p.tensor.detach().copy().set_requires_grad(true), p.role))
                .collect();

            run(uninterrupted.as_mut(), &mut parameters, 3..=5);
            run(resumed.as_mut(), &mut copies, 3..=5);
            for (parameter, copy) in parameters.iter().zip(&copies) {
                assert_eq!(values(&parameter.tensor), values(&copy.tensor), "{}", parameter.name);
            }
            assert_eq!(uninterrupted.state().scalars, resumed.state().scalars);
        }
    }
}

#[test]
fn small_steps_add_up_even_in_bf16() {
    // The spacing of bf16 around 1 is 2⁻⁷: forty steps of 5e-4 would each round to nothing.
    let mut parameters = [Parameter::new("w", leaf(&[1.0], Kind::BFloat16), Role::Undecayed)];
    let mut optimizer = adamw(0.0);
    for _ in 0..40 {
        set_gradient(&mut parameters[0], &[1.0]);
        optimizer.step(&mut parameters, 5e-4).unwrap();
    }
    close(&values(&parameters[0].tensor), &[0.98], 4e-3);
}

#[test]
fn a_gradient_that_was_never_allocated_counts_as_zero() {
    let mut optimizers = [adamw(0.1), adamw(0.1)];
    let mut never = [Parameter::new("w", leaf(&START, Kind::Float), Role::Weight)];
    let mut zeroed = [Parameter::new("w", leaf(&START, Kind::Float), Role::Weight)];
    set_gradient(&mut zeroed[0], &[0.0; 4]);
    optimizers[0].step(&mut never, 0.01).unwrap();
    optimizers[1].step(&mut zeroed, 0.01).unwrap();
    assert_eq!(values(&never[0].tensor), values(&zeroed[0].tensor));
}

#[test]
fn gradients_are_clipped_by_their_joint_norm() {
    let mut parameters = [
        Parameter::new("a", leaf(&[0.0, 0.0], Kind::Double), Role::Weight),
        Parameter::new("b", leaf(&[0.0], Kind::Double), Role::Weight),
        Parameter::new("unused", leaf(&[0.0], Kind::Double), Role::Weight),
    ];
    set_gradient(&mut parameters[0], &[3.0, 0.0]);
    set_gradient(&mut parameters[1], &[4.0]);
    close(&[clip_global_norm(&mut parameters, 0.0), clip_global_norm(&mut parameters, 10.0)], &[5.0, 5.0], 1e-6);
    close(&values(&parameters[0].tensor.grad()), &[3.0, 0.0], 0.0);

    close(&[clip_global_norm(&mut parameters, 1.0)], &[5.0], 1e-6);
    close(&values(&parameters[0].tensor.grad()), &[0.6, 0.0], 1e-6);
    close(&values(&parameters[1].tensor.grad()), &[0.8], 1e-6);
}

#[test]
fn a_gradient_that_is_not_finite_skips_the_update_and_is_cleared() {
    for poison in [f64::NAN, f64::INFINITY] {
        let mut parameters = every_role(Kind::Float);
        let mut optimizer = adamw(0.1);
        set_gradient(&mut parameters[1], &[0.0, poison, 0.0, 0.0]);
        let outcome = update(&mut optimizer, &mut parameters, 0.01, 1.0).unwrap();
        assert!(!outcome.is_taken() && !outcome.grad_norm().is_finite());
        assert!(optimizer.state().tensors.is_empty());
        assert_eq!(values(&parameters[1].tensor), START);
        assert_eq!(values(&parameters[1].tensor.grad()), [0.0; 4]);

        set_gradient(&mut parameters[1], &[0.0, 1.0, 0.0, 0.0]);
        assert_eq!(update(&mut optimizer, &mut parameters, 0.01, 1.0).unwrap(), Update::Taken { grad_norm: 1.0 });
    }
}

#[test]
fn each_parameter_may_have_its_own_rate() {
    let mut parameters = every_role(Kind::Double);
    parameters[1].learning_rate_scale = 0.0;
    run(&mut adamw(0.0), &mut parameters, 1..=1);
    assert_eq!(values(&parameters[1].tensor), START);
    assert!(values(&parameters[0].tensor)[0] < START[0]);
}

#[test]
fn state_of_another_rule_or_shape_is_refused() {
    let mut parameters = every_role(Kind::Float);
    let mut optimizer = adamw(0.1);
    run(&mut optimizer, &mut parameters, 1..=1);
    let error = Sgd::new(SgdConfig::default()).unwrap().restore(optimizer.state()).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("`adamw`"), "{error}");

    let mut incomplete = optimizer.state();
    incomplete.tensors.retain(|(name, _)| name != "second.layer.Gate");
    assert!(adamw(0.1).restore(incomplete).unwrap_err().to_string().contains("layer.Gate"));

    let mut pruned = vec![Parameter::new("layer.Gate", leaf(&[1.0], Kind::Float), Role::Gate)];
    let error = optimizer.step(&mut pruned, 0.01).unwrap_err();
    assert!(error.to_string().contains("[4]") && error.to_string().contains("[1]"), "{error}");
}

#[test]
fn the_config_reads_from_toml() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        optimizer: OptimizerConfig,
    }
    let read = |text: &str| toml::from_str::<Config>(text).map(|config| config.optimizer);
    let optimizer = read(
        "[optimizer.adamw]\nlearning_rate = 5e-4\nbetas = [0.9, 0.95]\nadam_epsilon = 1e-9\nwarmup_steps = 2\n\
         lr_scheduler_type = 'cosine'\nmin_lr_ratio = 0.1\nmax_grad_norm = 0.1\n",
    )
    .unwrap();
    assert_eq!(optimizer.max_grad_norm(), 0.1);
    assert!((optimizer.rate().at(0, 10) - 5e-4 / 3.0).abs() < 1e-12);
    for config in [optimizer.clone(), OptimizerConfig::Sgd(SgdConfig::default())] {
        let written = toml::to_string_pretty(&BTreeMap::from([("optimizer", &config)])).unwrap();
        assert_eq!(read(&written).unwrap(), config, "{written}");
    }
    let OptimizerConfig::Adamw(config) = &optimizer else { panic!("adamw was asked for") };
    assert_eq!((config.betas, config.eps, config.gate.eps), ((0.9, 0.95), 1e-9, 1e-6));
    assert!(optimizer.build().is_ok());

    let error = read("[optimizer.adamw]\nlearning_rat = 1.0").unwrap_err();
    assert!(error.to_string().contains("learning_rat"), "{error}");
    for wrong in ["betas = [1.0, 0.9]", "learning_rate = -1.0", "schedule_floor = 2.0", "eps = nan"] {
        let error = read(&format!("[optimizer.adamw]\n{wrong}")).unwrap().build().err().unwrap();
        assert!(error.is_input(), "{error}");
    }
}

fn close_gates(parameter: &Parameter, indices: &[i64]) {
    let _no_grad = tch::no_grad_guard();
    for index in indices {
        let _ = parameter.tensor.detach().narrow(0, *index, 1).zero_();
    }
}

#[test]
fn a_pruned_parameter_moves_as_if_nothing_had_been_pruned() {
    for build in every_rule() {
        for role in [Role::Weight, Role::Gate] {
            let whole = |values: &[f64]| vec![Parameter::new("layer.a", leaf(values, Kind::Double), role)];
            let (mut optimizer, mut parameters) = (build(), whole(&START));
            run(&mut *optimizer, &mut parameters, 1..=2);
            if role == Role::Gate {
                // Open gates share a unit, so only closed ones may be cut away.
                close_gates(&parameters[0], &[0, 2]);
            }
            let indices = Tensor::from_slice(&[1i64, 3]);
            let kept = values(&parameters[0].tensor.index_select(0, &indices));
            let mut small = whole(&kept);
            small[0].full_size = 4;
            let mut after = build();
            after.restore(optimizer.state()).unwrap();
            after.prune(&[Kept { name: "layer.a".into(), shape: vec![4], axis: 0, indices: indices.copy() }]).unwrap();
            for t in 3..=4 {
                let gradient = fixture_gradient(t);
                set_gradient(&mut parameters[0], &gradient);
                optimizer.step(&mut parameters, 0.01).unwrap();
                if role == Role::Gate {
                    close_gates(&parameters[0], &[0, 2]);
                }
                set_gradient(&mut small[0], &[gradient[1], gradient[3]]);
                after.step(&mut small, 0.01).unwrap();
            }
            assert_eq!(values(&small[0].tensor), values(&parameters[0].tensor.index_select(0, &indices)));
        }
    }
}

#[test]
fn what_is_remembered_in_another_shape_is_forgotten() {
    let tensor = |sizes: &[i64]| Tensor::zeros(sizes, (Kind::Float, model::device::HOST));
    let mut state = OptimizerState {
        rule: "factored".into(),
        scalars: [("steps.x".to_owned(), 3.0), ("steps.y".to_owned(), 4.0)].into(),
        tensors: vec![("rows.x".into(), tensor(&[4])), ("first.y".into(), tensor(&[2, 4]))],
    };
    for name in ["x", "y"] {
        state.prune(&Kept { name: name.into(), shape: vec![2, 4], axis: 1, indices: Tensor::from_slice(&[0i64]) });
    }
    assert_eq!(state.scalars.keys().collect::<Vec<_>>(), ["steps.y"]);
    assert_eq!(state.tensors.len(), 1);
    assert_eq!(state.tensors[0].1.size(), [2, 1]);
}
