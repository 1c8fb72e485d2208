//! `proxrl replay verify`, `prune` and `migrate`: checks a store, removes old samples, copies it.

use super::format::Format;
use crate::terminal::{answer, note, thousands};
use anyhow::Result;
use std::process::ExitCode;
use store::{Store, Table};

/// The options of `prune`. A step is removed if any of the rules names it.
#[derive(Debug, clap::Args)]
#[group(id = "rule", required = true, multiple = true, args = ["keep_steps", "below_policy", "max_size"])]
pub(super) struct Prune {
    /// Remove all but the newest this many steps of each run.
    #[arg(long, value_name = "STEPS")]
    keep_steps: Option<u64>,
    /// Remove the samples of policy versions below this one.
    #[arg(long, value_name = "VERSION")]
    below_policy: Option<u64>,
    /// Remove the oldest steps until the store is about this large, as in 500M or 2G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// Only this run, by name or number.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Show what would be removed, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub(super) fn run(&self, url: &str) -> Result<Table> {
        let store = if self.dry_run { Store::open_read_only(url)? } else { Store::open_existing(url)? };
        let run = self.run.as_deref().map(|run| store.find_run(run)).transpose()?.map(|run| run.id);
        let rule = store::Prune {
            run,
            keep_steps: self.keep_steps,
            below_policy: self.below_policy,
            max_bytes: self.max_size,
        };
        let pruned = if self.dry_run { store.rehearse_prune(&rule)? } else { store.prune(&rule)? };
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let (before, after) = (megabytes(pruned.bytes_before), megabytes(pruned.bytes_after));
        let sizes = match (self.dry_run, pruned.steps) {
            (true, steps) => format!("would free the samples of {steps} steps: {before} to about {after}"),
            (false, 0) => format!("no step to remove; the samples take {after}"),
            (false, steps) => format!("freed the samples of {steps} steps: {before} to {after}"),
        };
        note(&sizes);
        if pruned.swept > 0 {
            note(&format!("removed {} prompts and policies of steps pruned earlier", thousands(pruned.swept)));
        }
        if let Some(kept_room) = &pruned.kept_room {
            note(kept_room);
        }
        if pruned.still_needed > 0 {
            note(&format!("kept {} steps that a run which may be resumed still needs", thousands(pruned.still_needed)));
        }
        Ok(pruned.runs)
    }
}

/// The options of `migrate`.
#[derive(Debug, clap::Args)]
pub(super) struct Migrate {
    /// The store to copy, which is only read.
    from: String,
    /// The copy: an empty database, or a file that is not there.
    to: String,
}

impl Migrate {
    pub(super) fn run(&self) -> Result<Table> {
        let mut next = |table: &str| note(&format!("copying {table}"));
        let migrated = Store::migrate(&self.from, &self.to, &mut next)?;
        note(&format!("copied {} rows, and each table is equal in both", thousands(migrated.rows)));
        Ok(migrated.tables)
    }
}

/// Checks everything. The exit code is a failure if anything is wrong.
///
/// # Errors
///
/// Fails if the store cannot be read, or if the answer cannot be written. Rows at fault are no error.
pub(super) fn verify(store: &Store, format: Format) -> Result<ExitCode> {
    let found = store.verify()?;
    answer(&format.render(&found.checks)?)?;
    if found.unverifiable > 0 {
        note(&format!(
            "{} samples were stored before there were hashes: their content cannot be verified",
            thousands(found.unverifiable)
        ));
    }
    if found.unswept > 0 {
        note(&format!(
            "{} prompts and policies are left from pruned steps: nothing is wrong with them, and the next `prune` removes them",
            thousands(found.unswept)
        ));
    }
    if found.is_sound() {
        return Ok(ExitCode::SUCCESS);
    }
    note(&format!("{} rows are wrong; restore them from a copy of {}", found.wrong, store.place()));
    Ok(ExitCode::FAILURE)
}

/// Parses a number of bytes, with K, M, G or T for powers of 1000.
fn size(text: &str) -> std::result::Result<u64, String> {
    let plain = text.trim_end_matches(['B', 'b']);
    let units = [(['K', 'k'], 1e3), (['M', 'm'], 1e6), (['G', 'g'], 1e9), (['T', 't'], 1e12)];
    let found = units.iter().find_map(|(unit, factor)| Some((plain.strip_suffix(*unit)?, *factor)));
    let (digits, factor) = found.unwrap_or((plain, 1.0));
    match digits.trim().parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok((number * factor) as u64),
        _ => Err(format!("`{text}` is no size; write for example 500M or 2G")),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units_of_1000() {
        for (text, bytes) in [("10", 10), ("500M", 500_000_000), ("1.5g", 1_500_000_000), ("2 KB", 2_000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "M", "-1", "many", "NaN"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
