//! Speed and durability of the store: the numbers of `docs/results/store.md`.
//!
//! ```text
//! cargo run --release -p proxrl-store --example bench -- append   [SAMPLES]   against sqlite3's own inserts
//! cargo run --release -p proxrl-store --example bench -- draw     [SAMPLES]   512 rows from so many, and opening them
//! cargo run --release -p proxrl-store --example bench -- readers  [SECONDS]   one writer and eight readers
//! cargo run --release -p proxrl-store --example bench -- kill     [TIMES]     kill -9 while writing
//! cargo run --release -p proxrl-store --example bench -- growth   [SAMPLES]   appends and reads, as a store grows to so many
//! ```
//!
//! Everything happens in a temporary folder (`TMPDIR` says where), which needs about 1 GB for a million samples. Each
//! part ends with an error if a row is lost or a check fails; times are only printed.
#![expect(clippy::print_stdout, reason = "the numbers are the program's output")]

use proxrl_store::replay::{FillRule, Recent, ReplaySampler, ReplaySource, Stratified};
use proxrl_store::{NewRun, RunId, Store, Value};
use schema::{
    Finish, Grade, GradedGroup, Group, PolicyVersion, Prompt, RewardPart, Sample, SamplerSettings, Seed, Verdict,
};
use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Groups of a step, as in configs larger than the quickstart's.
const GROUPS: usize = 64;
const SAMPLES: usize = 8;
/// Samples of a step.
const ROWS: usize = GROUPS * SAMPLES;
/// Environment variable with the store that a child process writes to until it is killed.
const VICTIM: &str = "PROXRL_STORE_BENCH_VICTIM";

fn main() -> Result<()> {
    if let Ok(path) = std::env::var(VICTIM) {
        return append_forever(Path::new(&path));
    }
    let mut words = std::env::args().skip(1);
    let what = words.next().unwrap_or_default();
    let number = words.next().map(|word| word.parse::<usize>()).transpose()?;
    match what.as_str() {
        "append" => append(number.unwrap_or(16_384)),
        "draw" => draw(number.unwrap_or(1_000_000)),
        "readers" => readers(Duration::from_secs(number.unwrap_or(60) as u64)),
        "kill" => kill(number.unwrap_or(100)),
        "growth" => growth(number.unwrap_or(1_000_000)),
        _ => Err("say what to measure: append, draw, readers, kill or growth".into()),
    }
}

/// Appends of realistic groups (256 tokens a sample) against the same rows through the sqlite3 shell: the same schema
/// and indexes, a write-ahead log with full sync, a transaction a step, 64 rows an INSERT.
fn append(samples: usize) -> Result<()> {
    const TOKENS: usize = 256;
    let steps = samples.div_ceil(ROWS).max(1) as u64;
    let folder = tempfile::tempdir()?;
    let data: Vec<Vec<GradedGroup>> = (1..=steps).map(|step| groups(step, TOKENS)).collect();
    let (ours, theirs) = (folder.path().join("ours.db"), folder.path().join("theirs.db"));

    let (store, run) = new_store(&ours)?;
    let start = Instant::now();
    for (step, groups) in (1..).zip(&data) {
        store.append_step(run, step, groups, None)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    drop(new_store(&theirs)?);
    // The script is made beforehand, so that only the shell's own work is measured.
    let script = script(&data);
    let start = Instant::now();
    let mut shell = Command::new("sqlite3")
        .arg(&theirs)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start sqlite3: {error}; install it to compare with"))?;
    shell.stdin.take().ok_or("sqlite3 has no standard input")?.write_all(script.as_bytes())?;
    if !shell.wait()?.success() {
        return Err("sqlite3 refused the rows".into());
    }
    let shell_seconds = start.elapsed().as_secs_f64();

    let counted = "SELECT (SELECT COUNT(*) FROM prompts) + (SELECT COUNT(*) FROM groups)
        + (SELECT COUNT(*) FROM samples) + (SELECT COUNT(*) FROM rewards) + (SELECT COUNT(*) FROM steps)";
    let rows = count(&store, counted)?;
    let shell_rows = count(&Store::open_read_only(&url(&theirs))?, counted)?;
    if rows != shell_rows {
        return Err(format!("{rows} rows here and {shell_rows} there").into());
    }
    let (rate, shell_rate) = (rows as f64 / seconds, rows as f64 / shell_seconds);
    println!("{steps} steps of {GROUPS} groups of {SAMPLES} samples of {TOKENS} tokens: {rows} rows");
    println!(
        "store          {seconds:8.3} s  {rate:10.0} rows/s  {:8.0} samples/s",
        (steps * ROWS as u64) as f64 / seconds
    );
    println!("sqlite3 shell  {shell_seconds:8.3} s  {shell_rate:10.0} rows/s");
    println!("share of its rate: {:.0} %", 100.0 * rate / shell_rate);
    Ok(())
}

/// Measures the sampling of 64 groups (512 rows) from a store of many samples of 32 tokens, and the opening of it.
fn draw(samples: usize) -> Result<()> {
    const TOKENS: usize = 32;
    const DRAWS: u64 = 50;
    let steps = samples.div_ceil(ROWS).max(1) as u64;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("many.db");
    let (store, run) = new_store(&path)?;
    let start = Instant::now();
    for step in 1..=steps {
        store.append_step(run, step, &groups(step, TOKENS), None)?;
    }
    println!(
        "{} samples of {TOKENS} tokens in {:.0} s, {:.0} MB",
        steps * ROWS as u64,
        start.elapsed().as_secs_f64(),
        std::fs::metadata(&path)?.len() as f64 / 1e6
    );
    drop(store);
    let times = |work: &dyn Fn() -> proxrl_store::Result<()>, count: u64| -> Result<Vec<f64>> {
        let time = |_| {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        (0..count).map(time).collect()
    };
    report("open, reading", times(&|| Store::open_read_only(&url(&path)).map(|_| ()), 10)?);
    report("open, writing", times(&|| Store::open(&url(&path)).map(|_| ()), 10)?);

    let store = Store::open_read_only(&url(&path))?;
    let source = ReplaySource::of(&store, run, steps + 1);
    let rules = [
        ("draw 512 rows, uniform", ReplaySampler::Uniform),
        ("draw 512 rows, recent", ReplaySampler::Recent(Recent { steps: 2 })),
        ("draw 512 rows, stratified", ReplaySampler::Stratified(Stratified::default())),
    ];
    for (name, rule) in rules {
        let mut drawn = Vec::new();
        for trial in 0..DRAWS {
            let start = Instant::now();
            let groups = rule.draw(&source, GROUPS, &Seed::new(trial))?;
            drawn.push(start.elapsed().as_secs_f64() * 1e3);
            let rows: usize = groups.iter().map(|group| group.stored.sample_ids.len()).sum();
            if rows != ROWS {
                return Err(format!("{name} gave {rows} rows").into());
            }
        }
        report(name, drawn);
    }
    let stuck: Vec<GradedGroup> = groups(steps, TOKENS).iter().map(without_signal).collect::<Result<_>>()?;
    let rule = FillRule { rows: 4, min_difference: 0.0 };
    let fill = times(&|| rule.fill(&source, &stuck, &Seed::new(1)).map(|_| ()), DRAWS)?;
    report("fill 64 groups", fill);
    Ok(())
}

/// Measures appends of a step and the sampling of 64 groups at a thousand stored samples, ten thousand and so on. Prints
/// one JSON object with the figures, under the names that `scripts/bench.py` keeps them by.
fn growth(samples: usize) -> Result<()> {
    const TOKENS: usize = 32;
    const TIMES: u64 = 15;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("growing.db");
    let (store, run) = new_store(&path)?;
    let mut figures = Vec::new();
    let mut steps = 0;
    for stored in std::iter::successors(Some(1_000), |stored| Some(stored * 10)).take_while(|it| *it <= samples) {
        while (steps * ROWS as u64) < stored as u64 {
            steps += 1;
            store.append_step(run, steps, &groups(steps, TOKENS), None)?;
        }
        let mut appends = Vec::new();
        for _ in 0..TIMES {
            steps += 1;
            let step = groups(steps, TOKENS);
            let start = Instant::now();
            store.append_step(run, steps, &step, None)?;
            appends.push(start.elapsed().as_secs_f64() * 1e3);
        }
        figures.push(figure("append", stored, &appends));
        let source = ReplaySource::of(&store, run, steps + 1);
        let rules = [
            ("uniform", ReplaySampler::Uniform),
            ("recent", ReplaySampler::Recent(Recent { steps: 2 })),
            ("stratified", ReplaySampler::Stratified(Stratified::default())),
        ];
        for (name, rule) in rules {
            let mut draws = Vec::new();
            for trial in 0..TIMES {
                let start = Instant::now();
                let groups = rule.draw(&source, GROUPS, &Seed::new(trial))?;
                draws.push(start.elapsed().as_secs_f64() * 1e3);
                if groups.len() != GROUPS {
                    return Err(format!("{name} gave {} groups of {stored} samples", groups.len()).into());
                }
            }
            figures.push(figure(name, stored, &draws));
        }
    }
    println!("{{\"figures\": [{}]}}", figures.join(", "));
    Ok(())
}

fn figure(name: &str, stored: usize, times_ms: &[f64]) -> String {
    let values: Vec<String> = times_ms.iter().map(|time| format!("{time:.4}")).collect();
    let values = values.join(", ");
    format!("{{\"key\": \"growth/store/{name}/{stored}\", \"unit\": \"ms\", \"values\": [{values}]}}")
}

/// One writer and eight readers for a while: no error, no torn step, no lost row.
fn readers(how_long: Duration) -> Result<()> {
    const READERS: usize = 8;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("busy.db");
    let (store, run) = new_store(&path)?;
    let (path, done) = (&path, &AtomicBool::new(false));
    let (steps, asked) = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let readers: Vec<_> =
            (0..READERS).map(|number| scope.spawn(move || read_until(path, run, done, number))).collect();
        let start = Instant::now();
        let mut step = 0;
        let mut written = Ok(());
        while start.elapsed() < how_long && written.is_ok() {
            step += 1;
            written = store.append_step(run, step, &groups(step, 64), None);
        }
        done.store(true, Ordering::Relaxed);
        let mut asked = 0;
        for reader in readers {
            asked += reader.join().map_err(|_| "a reader panicked")??;
        }
        written?;
        Ok((step, asked))
    })?;
    let samples = count(&store, "SELECT COUNT(*) FROM samples")?;
    if samples != (steps * ROWS as u64) as i64 {
        return Err(format!("{samples} samples of {steps} steps").into());
    }
    sound(&store)?;
    println!(
        "{:.0} s: {steps} steps ({samples} samples) written, {asked} questions of {READERS} readers answered, no error, no lost row",
        how_long.as_secs_f64()
    );
    Ok(())
}

/// Queries the store until `done` is set; returns the number of queries.
fn read_until(path: &Path, run: RunId, done: &AtomicBool, reader: usize) -> Result<u64> {
    let store = Store::open_read_only(&url(path))?;
    let mut asked = 0;
    while !done.load(Ordering::Relaxed) {
        let steps = count(&store, "SELECT COUNT(*) FROM steps")? as u64;
        let sql = format!("SELECT COUNT(*) FROM groups g JOIN samples s ON s.group_id = g.id WHERE g.step <= {steps}");
        let samples = count(&store, &sql)?;
        if samples != (steps * ROWS as u64) as i64 {
            return Err(format!("reader {reader} saw {samples} samples of {steps} steps").into());
        }
        let drawn = ReplaySampler::Uniform.draw(&ReplaySource::of(&store, run, steps + 1), 8, &Seed::new(asked))?;
        if let Some(group) = drawn.iter().find(|group| group.stored.sample_ids.len() != SAMPLES) {
            return Err(format!("reader {reader} drew {group:?}").into());
        }
        asked += 1;
    }
    Ok(asked)
}

/// Kills a writer `times` times. After each kill the store must be whole and hold every reported step.
fn kill(times: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("victim.db");
    drop(new_store(&path)?);
    let mut reported = 0;
    for trial in 0..times as u64 {
        let mut child = Command::new(std::env::current_exe()?).env(VICTIM, &path).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("the writer has no output")?).lines();
        let first = lines.next().ok_or("the writer wrote nothing")??;
        // A step takes some milliseconds: the kill falls into each part of it.
        std::thread::sleep(Duration::from_micros(Seed::new(trial).below(0, 30_000)));
        child.kill()?;
        child.wait()?;
        let last = lines.map_while(std::io::Result::ok).last().unwrap_or(first);
        reported = last.parse::<i64>().unwrap_or(reported);
        let store = Store::open(&url(&path))?;
        let steps = count(&store, "SELECT COUNT(*) FROM steps")?;
        let samples = count(&store, "SELECT COUNT(*) FROM samples")?;
        if steps < reported || steps > reported + 1 || samples != steps * ROWS as i64 {
            return Err(format!("kill {trial}: {reported} steps reported, {steps} there, {samples} samples").into());
        }
        let broken = "SELECT COUNT(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'";
        if count(&store, broken)? > 0 {
            return Err(format!("kill {trial}: the file is broken").into());
        }
    }
    let store = Store::open(&url(&path))?;
    sound(&store)?;
    println!("{times} kills: integrity check clean after each, {reported} steps reported and all of them there");
    Ok(())
}

/// The process that is killed: appends steps, and prints the number of each one that is done.
fn append_forever(path: &Path) -> Result<()> {
    let store = Store::open(&url(path))?;
    let run = store.find_run("bench")?.id;
    let first = count(&store, "SELECT COUNT(*) FROM steps")? as u64 + 1;
    for step in first.. {
        store.append_step(run, step, &groups(step, 16), None)?;
        println!("{step}");
    }
    Ok(())
}

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

fn new_store(path: &Path) -> Result<(Store, RunId)> {
    let store = Store::open(&url(path))?;
    let run = store.begin_run(&NewRun {
        name: "bench".into(),
        config: String::new(),
        program_version: env!("CARGO_PKG_VERSION").into(),
        out_dir: "runs/bench".into(),
        model_hash: "none".into(),
        started_at: SystemTime::now(),
    })?;
    Ok((store, run))
}

fn count(store: &Store, sql: &str) -> Result<i64> {
    match store.query(sql)?.rows.first().and_then(|row| row.first()) {
        Some(Value::Integer(number)) => Ok(*number),
        other => Err(format!("{sql} gave {other:?}").into()),
    }
}

/// Fails unless every check of `proxrl replay verify` passes.
fn sound(store: &Store) -> Result<()> {
    let found = store.verify()?;
    if found.is_sound() { Ok(()) } else { Err(format!("the store is not sound:\n{:#?}", found.checks.rows).into()) }
}

/// Median and maximum of times in milliseconds.
fn report(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{name:28} median {median:8.2} ms, longest {most:8.2} ms, of {}", times.len());
}

/// The groups of a step: 256 prompts that come again and again, and completions of their own.
fn groups(step: u64, tokens: usize) -> Vec<GradedGroup> {
    let seed = Seed::new(step);
    let group = |number: u64| {
        let own = seed.at(number);
        let asked = (step * GROUPS as u64 + number) % 256;
        let sample = |place: u64| {
            let draws = own.at(place).uniforms(2 * tokens, 0.0, 1.0);
            Sample {
                ids: draws[..tokens].iter().map(|draw| (draw * 49_152.0) as u32).collect(),
                mask: vec![true; tokens],
                logprobs: draws[tokens..].iter().map(|draw| -5.0 * draw).collect(),
                finish: Finish::Eos,
                text: format!("Step {step}, sample {place}: ").repeat(tokens.div_ceil(8)),
            }
        };
        let verdict = |place: u64| {
            let part = |name: &str, value: f32| RewardPart {
                name: name.into(),
                version: "1-00000000".into(),
                weight: 1.0,
                grade: Grade::Value(value),
            };
            Verdict::of_rewards(vec![part("answer", own.below(place, 2) as f32), part("format", 0.5)])
        };
        let drawn = Group {
            prompt: Prompt::user(format!("What is {asked} + {asked}? Think, then answer.")).with_answer("1"),
            prompt_ids: (0..48).map(|at| (asked + at) as u32).collect(),
            policy: PolicyVersion { version: step - 1, hash: format!("{step:064x}") },
            settings: SamplerSettings::default(),
            samples: (0..SAMPLES as u64).map(sample).collect(),
        };
        GradedGroup::new(drawn, (0..SAMPLES as u64).map(verdict).collect()).expect("one verdict per sample")
    };
    (0..GROUPS as u64).map(group).collect()
}

/// The same group with every reward alike.
fn without_signal(scored: &GradedGroup) -> Result<GradedGroup> {
    let verdicts = vec![scored.verdicts()[0].clone(); scored.verdicts().len()];
    Ok(GradedGroup::new(scored.group().clone(), verdicts)?)
}

/// The rows of these steps as plain SQL for the shell.
fn script(data: &[Vec<GradedGroup>]) -> String {
    let mut sql = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;\n".to_owned();
    let mut prompts: Vec<String> = Vec::new();
    let (mut groups, mut samples) = (0, 0);
    for (step, scored) in (1..).zip(data) {
        let mut rows: [Vec<String>; 4] = Default::default();
        for (place, scored) in scored.iter().enumerate() {
            let group = scored.group();
            let hash = group.prompt.hash();
            let prompt = prompts.iter().position(|known| *known == hash).unwrap_or_else(|| {
                let json = serde_json::to_string(&group.prompt).expect("a prompt is JSON");
                let ids = blob(group.prompt_ids.iter().flat_map(|id| id.to_le_bytes()));
                rows[0].push(format!("('{hash}', '{hash}', 'q', '1', '{json}', {}, {ids})", group.prompt_ids.len()));
                prompts.push(hash);
                prompts.len() - 1
            });
            groups += 1;
            let settings = serde_json::to_string(&group.settings).expect("settings are JSON");
            rows[1].push(format!("({groups}, 1, {step}, {place}, {}, {step}, '{settings}')", prompt + 1));
            for (place, (sample, verdict)) in group.samples.iter().zip(scored.verdicts()).enumerate() {
                samples += 1;
                let ids = blob(sample.ids.iter().flat_map(|id| id.to_le_bytes()));
                let logprobs = blob(sample.logprobs.iter().flat_map(|logprob| logprob.to_le_bytes()));
                let (length, text) = (sample.len(), &sample.text);
                rows[2].push(format!(
                    "({samples}, {groups}, {place}, {length}, 'eos', -1.0, '{text}', NULL, {ids}, {logprobs}, '{samples:064x}')"
                ));
                for (place, part) in verdict.rewards.iter().enumerate() {
                    let value = part.grade.value().unwrap_or_default();
                    rows[3].push(format!("({samples}, 0, {place}, '{}', '1', 1.0, {value}, 'judged', 0)", part.name));
                }
            }
        }
        let _ = writeln!(sql, "BEGIN IMMEDIATE;");
        let _ = writeln!(sql, "INSERT INTO policies VALUES ({step}, 1, {step}, 'h', NULL, 0, 'drawn');");
        let tables =
            ["prompts (hash, token_hash, question, answer, json, length, token_ids)", "groups", "samples", "rewards"];
        for (table, rows) in tables.iter().zip(&rows) {
            for rows in rows.chunks(64) {
                let _ = writeln!(sql, "INSERT INTO {table} VALUES {};", rows.join(", "));
            }
        }
        let _ =
            writeln!(sql, "INSERT INTO steps VALUES (1, {step}, {GROUPS}, {ROWS}, 0, NULL, 0, NULL, NULL); COMMIT;");
    }
    sql
}

fn blob(bytes: impl Iterator<Item = u8>) -> String {
    format!("x'{}'", schema::hex(&bytes.collect::<Vec<u8>>()))
}
