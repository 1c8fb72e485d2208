//! Several runs in one plot: a metric against steps, samples, tokens or seconds, with runs of one name averaged.
//!
//! Runs that share a name are the same experiment under different seeds. Their curve is the mean of both coordinates,
//! row by row, up to the length of the shortest.

use super::{Curve, draw};
use crate::files::write_atomically;
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Horizontal axis of a plot of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Training steps.
    Step,
    /// Samples so far.
    Samples,
    /// Tokens seen so far, prompts included.
    Tokens,
    /// Seconds of training so far.
    Seconds,
}

impl Axis {
    /// Returns the metric that holds the axis' values.
    fn metric(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Samples => "num_samples",
            Self::Tokens => "num_tokens",
            Self::Seconds => "time/train_s",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Samples => "samples",
            Self::Tokens => "tokens",
            Self::Seconds => "seconds of training",
        }
    }
}

type Points = Vec<(f64, f64)>;

/// Returns the curves of the metric `y` over named run folders.
///
/// # Errors
/// If a folder holds no metrics, or lacks one of the two metrics.
pub fn curve_of_runs(runs: &[(String, PathBuf)], x: Axis, y: &str) -> Result<Curve> {
    let mut named: Vec<(String, Vec<Points>)> = Vec::new();
    for (name, folder) in runs {
        let points = points(folder, x.metric(), y)?;
        match named.iter_mut().find(|(known, _)| known == name) {
            Some((_, seeds)) => seeds.push(points),
            None => named.push((name.clone(), vec![points])),
        }
    }
    Ok(Curve {
        title: format!("{y} by {}", x.label()),
        x_label: x.label().into(),
        y_label: y.into(),
        series: named.into_iter().map(|(name, seeds)| (name, mean(&seeds))).collect(),
    })
}

/// Draws a curve into a file: SVG or PNG, by its extension.
///
/// # Errors
/// If the extension is another one, there is nothing to draw, or the file cannot be written.
pub fn write(curve: &Curve, path: &Path) -> Result<()> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let bytes = match extension {
        "svg" => draw(curve)?.svg.into_bytes(),
        "png" => draw(curve)?.png,
        _ => return Err(Error::input(format!("{}: give a file that ends in .svg or .png", path.display()))),
    };
    write_atomically(path, &bytes).map_err(|error| Error::input(format!("{error}; choose another with --out")))
}

/// Returns the points of a run: the rows of its metrics that have both names.
fn points(folder: &Path, x: &str, y: &str) -> Result<Points> {
    let path = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&path).map_err(|error| {
        Error::input(format!("cannot read {}: {error}; give run folders, such as runs/quickstart", path.display()))
    })?;
    // The last line may be torn while a run writes it.
    let rows: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let number = |row: &Value, key: &str| row.get(key).and_then(Value::as_f64);
    let points: Points = rows.iter().filter_map(|row| Some((number(row, x)?, number(row, y)?))).collect();
    if !points.is_empty() {
        return Ok(points);
    }
    let known = rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys());
    let missing = if known.clone().any(|key| key == x) { y } else { x };
    let mut known: Vec<&str> = known.map(String::as_str).collect();
    known.sort_unstable();
    known.dedup();
    Err(Error::input(format!("{} has no metric `{missing}`; it has {}", path.display(), known.join(", "))))
}

fn mean(seeds: &[Points]) -> Points {
    let rows = seeds.iter().map(Vec::len).min().unwrap_or(0);
    let at = |row: usize, of: fn(&(f64, f64)) -> f64| {
        seeds.iter().map(|points| of(&points[row])).sum::<f64>() / seeds.len() as f64
    };
    (0..rows).map(|row| (at(row, |point| point.0), at(row, |point| point.1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        folder
    }

    #[test]
    fn runs_of_one_name_are_drawn_as_their_mean() {
        let a =
            run("{\"step\":1,\"num_samples\":8,\"reward\":0.0}\n{\"step\":2,\"num_samples\":16,\"reward\":0.5}\n{\"st");
        let b = run("{\"step\":1,\"num_samples\":24,\"reward\":1.0}\n");
        let c =
            run("{\"step\":1,\"num_samples\":8,\"reward\":0.25}\n{\"step\":2,\"num_samples\":16,\"reward\":null}\n");
        let named = |name: &str, folder: &tempfile::TempDir| (name.to_owned(), folder.path().to_owned());
        let runs = [named("grpo", &a), named("dapo", &c), named("grpo", &b)];
        let curve = curve_of_runs(&runs, Axis::Samples, "reward").unwrap();
        assert_eq!(curve.series, [("grpo".to_owned(), vec![(16.0, 0.5)]), ("dapo".to_owned(), vec![(8.0, 0.25)])]);
        assert_eq!((curve.x_label.as_str(), curve.y_label.as_str()), ("samples", "reward"));
    }

    #[test]
    fn a_metric_that_is_not_there_is_named_with_those_that_are() {
        let folder = run("{\"step\":1,\"reward\":0.0}\n");
        let runs = [("a".to_owned(), folder.path().to_owned())];
        let said = |x, y| curve_of_runs(&runs, x, y).unwrap_err().to_string();
        assert!(said(Axis::Step, "rewrad").contains("no metric `rewrad`; it has reward, step"));
        assert!(said(Axis::Seconds, "reward").contains("no metric `time/train_s`"));
        let nowhere = [("a".to_owned(), folder.path().join("nowhere"))];
        assert!(curve_of_runs(&nowhere, Axis::Step, "reward").unwrap_err().is_input());
    }

    #[test]
    fn the_extension_says_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let curve = Curve { series: vec![("a".into(), vec![(0.0, 0.0), (1.0, 1.0)])], ..Curve::default() };
        for (name, first) in [("a.svg", &b"<svg"[..]), ("a.png", b"\x89PNG")] {
            write(&curve, &folder.path().join(name)).unwrap();
            assert!(fs::read(folder.path().join(name)).unwrap().starts_with(first));
        }
        assert!(write(&curve, Path::new("a.jpg")).unwrap_err().to_string().contains(".svg or .png"));
    }
}
