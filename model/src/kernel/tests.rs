//! Kernels against libtorch and against arithmetic by hand.

use super::gemm::{Term, gemm_backward_on, gemm_on};
use super::simd::Instructions;
use super::*;
use crate::attention::{Attention, GroupAttention};
use crate::device::HOST;
use schema::Seed;
use tch::{Kind, Tensor};

fn random(rows: i64, columns: i64, name: &str) -> Tensor {
    Tensor::from_slice(&Seed::new(1).child(name).normals((rows * columns) as usize)).reshape([rows, columns])
}

/// The formats that weights are stored in.
const FORMATS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}

/// `x` as it is multiplied with weights of a format.
fn rounded(x: &Tensor, format: Kind) -> Tensor {
    wide(&x.to_kind(format))
}

/// `x Wᵀ + u Bᵀ + bias` on top of ones, in f64 by libtorch and by our GEMM on some columns.
fn check(instructions: Instructions, format: Kind, rows: i64, outputs: i64, inputs: i64, rank: i64) {
    let (x, w) = (random(rows, inputs, "x"), random(outputs, inputs, "w").to_kind(format));
    let (u, b) = (random(rows, rank.max(1), "u"), random(outputs, rank.max(1), "b"));
    let bias = random(1, outputs, "bias");
    let mut expected = rounded(&x, format).matmul(&wide(&w).tr()) + wide(&bias) + 1.0;
    if rank > 0 {
        expected += wide(&u).matmul(&wide(&b).tr());
    }
    let y = Tensor::ones([rows, outputs], (Kind::Float, HOST));
    let product = Gemm {
        weight: Matrix::of(&w),
        inputs: inputs as usize,
        bias: Some(Rows::of(&bias)),
        low_rank: (rank > 0).then(|| LowRankTerm { inner: Rows::of(&u), up: Rows::of(&b), rank: rank as usize }),
    };
    let (from, to) = (Rows::of(&x), RowsMut::of_tensor(&y, outputs as usize));
    for thread in 0..2 {
        let columns = share_of(thread, 2, outputs as usize, 5);
        unsafe { gemm_on(instructions, &product, from, rows as usize, columns, to, Accumulate::Add) };
    }
    let error = (wide(&y) - expected).abs().max().double_value(&[]);
    // Sums of `inputs` products of elements about 1, in f32.
    assert!(error < 2e-6 * (inputs as f64), "{instructions:?} {format:?} {rows}x{outputs}x{inputs}+{rank}: {error}");
}

/// All instructions that this machine has, on weights of every format.
fn everywhere() -> impl Iterator<Item = (Instructions, Kind)> {
    Instructions::all().into_iter().flat_map(|instructions| FORMATS.map(|format| (instructions, format)))
}

#[test]
fn gemms_agree_with_libtorch_whatever_the_sizes() {
    for (instructions, format) in everywhere() {
        for (rows, outputs, inputs, rank) in [
            (1, 1, 1, 0),
            (1, 17, 33, 3),
            (2, 8, 16, 16),
            (3, 29, 40, 5),
            (4, 24, 48, 16),
            (7, 50, 100, 17),
            (9, 6, 7, 1),
        ] {
            check(instructions, format, rows, outputs, inputs, rank);
        }
    }
}

#[test]
fn a_row_of_a_gemm_has_the_same_bits_in_any_batch() {
    for (instructions, format) in everywhere() {
        let row_of = |rows: i64, row: i64| {
            let (x, w) = (random(8, 100, "x"), random(31, 100, "w").to_kind(format));
            let x = x.narrow(0, row - (rows - 1), rows).contiguous();
            let y = Tensor::zeros([rows, 31], (Kind::Float, HOST));
            let product = Gemm { weight: Matrix::of(&w), inputs: 100, bias: None, low_rank: None };
            let (from, to) = (Rows::of(&x), RowsMut::of_tensor(&y, 31));
            unsafe { gemm_on(instructions, &product, from, rows as usize, 0..31, to, Accumulate::Overwrite) };
            Vec::<f32>::try_from(y.get(rows - 1)).unwrap()
        };
        let alone = row_of(1, 7);
        for rows in 2..=8 {
            assert_eq!(row_of(rows, 7), alone, "{instructions:?} {format:?}, {rows} rows");
        }
    }
}

#[test]
fn the_backward_gemm_agrees_with_libtorch_whatever_the_sizes() {
    for (instructions, format) in everywhere() {
        for (rows, outputs, depth, rank) in [(1, 1, 1, 1), (5, 17, 33, 3), (19, 50, 200, 16), (300, 97, 400, 7)] {
            let (g, w) = (random(rows, depth, "g"), random(depth, outputs, "w").to_kind(format));
            let (h, a) = (random(rows, rank, "h"), random(rank, outputs, "a"));
            let expected = rounded(&g, format).matmul(&wide(&w)) + wide(&h).matmul(&wide(&a));
            let y = Tensor::full([rows, outputs], f64::NAN, (Kind::Float, HOST));
            let (terms, to) = ([Term::new(&g, &w), Term::new(&h, &a)], RowsMut::of_tensor(&y, outputs as usize));
            for thread in 0..4 {
                let own = share_of(thread / 2, 2, rows as usize, 3);
                let columns = share_of(thread % 2, 2, outputs as usize, 5);
                unsafe { gemm_backward_on(instructions, &terms, own, columns, to) };
            }
            let error = (wide(&y) - expected).abs().max().double_value(&[]);
            assert!(
                error < 2e-6 * depth as f64,
                "{instructions:?} {format:?} {rows}x{outputs}x{depth}+{rank}: {error}"
            );
        }
    }
}

#[test]
fn a_row_of_a_linear_layer_has_the_same_bits_in_any_batch() {
    for format in FORMATS {
        let (x, w) = (random(21, 300, "x"), random(300, 50, "w").to_kind(format));
        let rows = |start: i64, count: i64| {
            let x = x.narrow(0, start, count).contiguous();
            (ops::linear(&x, &w.tr().contiguous()), ops::linear_backward(&[(&x, &w)]))
        };
        let whole = rows(0, 21);
        for (start, count) in [(0, 1), (3, 5), (20, 1), (8, 13)] {
            let part = rows(start, count);
            assert!(part.0.equal(&whole.0.narrow(0, start, count)), "forward, {count} from {start}");
            assert!(part.1.equal(&whole.1.narrow(0, start, count)), "back, {count} from {start}");
        }
    }
}

#[test]
fn norms_rotations_and_gates_agree_with_libtorch() {
    for count in [1i64, 7, 16, 40] {
        let (x, weight) = (random(1, count, "x"), random(1, count, "w"));
        let numbers = |x: &Tensor| Vec::<f32>::try_from(x.reshape([-1])).unwrap();
        let mut normed = vec![0.0; count as usize];
        rms_norm(&numbers(&x), &numbers(&weight), 1e-5, &mut normed);
        let expected = &x * (x.square().mean(Kind::Float) + 1e-5).rsqrt() * &weight;
        close(&normed, &numbers(&expected));

        let mut gate = numbers(&(&x * 30.0));
        gate_silu(&mut gate, &numbers(&weight));
        close(&gate, &numbers(&((&x * 30.0).silu() * &weight)));
    }
    // the pair (1, 2) turned by a right angle is (-2, 1)
    let mut head = [1.0, 2.0];
    rotate(&mut head, &[0.0], &[1.0]);
    assert_eq!(head, [-2.0, 1.0]);
}

#[test]
fn attention_agrees_with_libtorch() {
    for (heads, head_dim, tokens) in [(1i64, 8i64, 1i64), (3, 64, 37), (5, 20, 9)] {
        let q = random(heads, head_dim, "q") * 2.0;
        let (k, v) = (random(tokens, head_dim, "k"), random(tokens, head_dim, "v"));
        let expected = (q.matmul(&k.tr()) / (head_dim as f64).sqrt()).softmax(-1, Kind::Float).matmul(&v);
        let mixed = Tensor::zeros([heads, head_dim], (Kind::Float, HOST));
        let work = attention::DecodeHeads {
            queries: Rows::of(&q).row(0),
            heads: heads as usize,
            keys: Rows::of(&k).row(0),
            values: Rows::of(&v).row(0),
            stride: head_dim as usize,
            tokens: tokens as usize,
            head_dim: head_dim as usize,
            output: RowsMut::of_tensor(&mixed, head_dim as usize).row(0),
        };
        unsafe { attention::decode(&work, &mut Vec::new()) };
        close(
            &Vec::<f32>::try_from(mixed.reshape([-1])).unwrap(),
            &Vec::<f32>::try_from(expected.reshape([-1])).unwrap(),
        );
    }
}

#[test]
fn attention_of_groups_and_its_gradient_are_those_of_autograd() {
    let layouts = [vec![(1, vec![])], vec![(3, vec![2, 0, 5]), (70, vec![1, 130])], vec![(200, vec![])]];
    for (layout, (heads, kv_heads, dim)) in layouts.iter().zip([(2i64, 2i64, 4i64), (6, 2, 20), (3, 1, 64)]) {
        let tokens: usize = layout.iter().map(|(prompt, own)| prompt + own.iter().sum::<usize>()).sum();
        let (tokens, width) = (tokens as i64, (heads + 2 * kv_heads) * dim);
        let qkv = (random(tokens, width, "qkv") * 1.5).set_requires_grad(true);
        let above = random(tokens, heads * dim, "above");
        let part = |start: i64, heads: i64| qkv.narrow(1, start * dim, heads * dim).reshape([tokens, heads, dim]);
        let mut attention = GroupAttention::new(layout, HOST, Kind::Float);
        let expected = attention
            .attend(0, &part(0, heads), &part(heads, kv_heads), &part(heads + kv_heads, kv_heads))
            .reshape([tokens, heads * dim]);
        let pulled = (&expected * &above).sum(Kind::Float);
        let grad_qkv = Tensor::run_backward(&[pulled], &[&qkv], false, false).swap_remove(0);

        let shape = [heads, kv_heads, dim].map(|size| size as usize);
        let shape = attention::packed::HeadShape { heads: shape[0], kv_heads: shape[1], head_dim: shape[2] };
        let (groups, qkv) = (attention.groups().unwrap(), qkv.detach());
        let (mixed, logs) = attention::packed::forward(&qkv, groups, shape);
        let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(apart(&mixed, &expected.detach()) < 1e-5, "{layout:?}: {}", apart(&mixed, &expected.detach()));
        let gradient = attention::packed::backward(&qkv, &mixed, &logs, &above, groups, shape);
        assert!(apart(&gradient, &grad_qkv) < 5e-5, "{layout:?}: {}", apart(&gradient, &grad_qkv));
    }
}

#[test]
fn exponentials_are_right_to_the_last_digits() {
    for step in -8_600..8_800 {
        let x = step as f32 / 100.0;
        let (got, expected) = (f64::from(pointwise::exp(x)), f64::from(x).exp());
        assert!((got / expected - 1.0).abs() < 3e-7, "e^{x}: {got}, {expected}");
    }
}

#[test]
fn threads_share_all_of_the_work_and_meet_at_the_barrier() {
    for (threads, count, unit) in [(1, 10, 3), (3, 10, 3), (4, 2, 1), (2, 0, 5)] {
        let shares: Vec<usize> = (0..threads).flat_map(|thread| share_of(thread, threads, count, unit)).collect();
        assert_eq!(shares, (0..count).collect::<Vec<_>>());
    }
    let mut buffer = vec![0.0; 3];
    let cells = RowsMut::of(&mut buffer, 1);
    run_threads(3, |thread, barrier| {
        for round in 1..=50 {
            // SAFETY: each thread writes its own cell, and reads the others' only behind the barrier.
            unsafe { cells.slice(thread, 1)[0] += 1.0 };
            barrier.wait();
            for other in 0..3 {
                assert_eq!(unsafe { cells.read().slice(other, 1)[0] }, round as f32);
            }
            barrier.wait();
        }
    });
    assert_eq!(buffer, [50.0; 3]);
}

#[test]
fn low_rank_products_agree_with_libtorch() {
    for (rows, columns, rank) in [(1i64, 3i64, 1i64), (9, 40, 5), (30, 150, 16)] {
        let (x, a, thin) = (random(rows, columns, "x"), random(rank, columns, "a"), random(rows, rank, "t"));
        let numbers = |x: &Tensor| Vec::<f32>::try_from(x.contiguous().reshape([-1])).unwrap();
        let near = |got: &Tensor, expected: &Tensor| {
            assert_eq!(got.size(), expected.size());
            let apart = (got - expected).abs().max().double_value(&[]);
            assert!(apart < 1e-6 * (rows + columns) as f64, "{rows} {columns} {rank}: {apart}");
        };
        near(&low_rank::matmul_nt(low_rank::ColumnView::of(&x, 0..columns), &a), &x.matmul(&a.tr()));
        near(&low_rank::matmul_tn(&thin, low_rank::ColumnView::of(&x, 0..columns)), &thin.tr().matmul(&x));
        // Only some columns of a wider matrix.
        let part = x.narrow(1, 1, columns - 2);
        assert!(!numbers(&part).is_empty());
        near(&low_rank::matmul_tn(&thin, low_rank::ColumnView::of(&x, 1..columns - 1)), &thin.tr().matmul(&part));
    }
}

#[test]
fn logprobs_of_a_vocabulary_and_their_gradient_are_those_of_autograd() {
    let logits = (random(3, 77, "logits") * 3.0).set_requires_grad(true);
    let (targets, temperature) = ([5i64, 76, 31], 0.7);
    let log_p = (&logits / temperature).log_softmax(-1, Kind::Float);
    let logprobs = log_p.gather(1, &Tensor::from_slice(&targets).unsqueeze(1), false).squeeze_dim(1);
    let entropy = -(log_p.exp() * &log_p).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    let results = logits::logprobs(&logits.detach(), &targets, temperature as f32);
    let numbers = |x: &Tensor| Vec::<f32>::try_from(x.detach().reshape([-1])).unwrap();
    close(&numbers(&results.logprobs), &numbers(&logprobs));
    close(&numbers(&results.entropy), &numbers(&entropy));
    let by_autograd = |y: &Tensor| Tensor::run_backward(&[y.sum(Kind::Float)], &[&logits], true, false).swap_remove(0);
    let gradient = logits.detach().copy();
    logits::dlogp(&gradient, &targets, temperature as f32);
    close(&numbers(&gradient), &numbers(&by_autograd(&logprobs)));
    let weights = [0.1f32, 0.0, -0.3];
    let gradient = logits.detach().copy();
    logits::entropy_backward(&gradient, temperature as f32, &weights);
    close(&numbers(&gradient), &numbers(&by_autograd(&(entropy * Tensor::from_slice(&weights)))));
}

/// Asserts equality to a few f32 roundings of elements about 1.
fn close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 3e-6 * expected.abs().max(1.0), "{got} {expected}");
    }
}
