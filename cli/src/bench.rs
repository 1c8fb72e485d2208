//! `proxrl bench`: the speed of sampling and training on this machine, and the share of its limits that is reached.

use crate::terminal::table::{Column, grid};
use crate::terminal::{answer, note};
use anyhow::Result;
use bench::profile::PhaseLog;
use bench::{Args, Report, Row};

pub(crate) fn run(args: &Args, phases: &PhaseLog) -> Result<()> {
    let report = bench::run(args, phases, &mut note)?;
    let text = if args.json { format!("{:#}\n", report.json()) } else { text(&report) };
    answer(&text)?;
    Ok(())
}

/// The report for a reader.
fn text(report: &Report) -> String {
    let rows = report.rows();
    let column =
        |name, numeric, cell: &dyn Fn(&Row) -> String| Column::new(name, rows.iter().map(cell).collect(), numeric);
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), digits);
    let columns = [
        column("figure", false, &|row| row.name.clone()),
        column("median", true, &|row| format!("{} {}", number(row.median), row.unit)),
        column("least", true, &|row| number(row.low)),
        column("greatest", true, &|row| number(row.high)),
        column("limit", true, &|row| row.limit.map_or_else(String::new, digits)),
        column("reached", true, &|row| {
            row.share_of_limit.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share))
        }),
    ];
    format!("{}\n\n{}", report.title(), grid(&columns.iter().collect::<Vec<_>>()))
}

/// Three significant digits.
fn digits(number: f64) -> String {
    let size = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    format!("{number:.*}", (2 - size).clamp(0, 9) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (number, expected) in
            [(0.0, "0.00"), (0.001_234, "0.00123"), (1.234, "1.23"), (56.78, "56.8"), (12_345.0, "12345")]
        {
            assert_eq!(digits(number), expected);
        }
    }
}
