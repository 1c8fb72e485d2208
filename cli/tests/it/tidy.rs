//! The house's rules that a search can check: each finding names file and line, and what to do.
//!
//! Rules that clippy or rustfmt can check are left to them (`clippy.toml`, `[workspace.lints]`, `.ci/run`).

mod language;

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace;

const ROOMS: &[&str] = &["schema", "model", "rollout", "reward", "store", "trainer", "bench", "cli"];

/// Longer files hide more than one idea.
const MAX_LINES: usize = 600;

#[test]
fn files_open_with_their_reason() {
    let wrong = rust_files().into_iter().filter(|file| !file.text.starts_with("//! "));
    check(wrong.map(|file| format!("{}:1: begin with a module doc (`//! …`): what this file is, and why", file.name)));
}

#[test]
fn files_fit_in_a_head() {
    let long =
        rust_files().into_iter().map(|file| (file.text.lines().count(), file)).filter(|(lines, _)| *lines > MAX_LINES);
    check(long.map(|(lines, file)| format!("{}:{MAX_LINES}: {lines} lines; split it into two ideas", file.name)));
}

#[test]
fn modules_are_named_after_what_they_hold() {
    let vague = ["mod.rs", "utils.rs", "util.rs", "common.rs", "helpers.rs", "base.rs", "misc.rs"];
    let wrong = rust_files()
        .into_iter()
        .filter(|file| vague.contains(&file.path.file_name().map_or("", |it| it.to_str().unwrap())));
    check(wrong.map(|file| format!("{}:1: name the file after what it holds; `foo.rs` beside `foo/`", file.name)));
}

#[test]
fn nothing_is_left_unwritten() {
    let left = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!("), concat!("#[ig", "nore")];
    check_lines(rust_files(), |line| {
        left.iter().find(|word| line.code.contains(**word)).map(|word| format!("`{word}…`: write it, or leave it out"))
    });
}

#[test]
fn the_device_is_a_value() {
    let forbidden = [concat!("Device::", "Cpu"), concat!("Device::", "Cuda"), concat!("Cuda::", "is_available")];
    let files = rust_files().into_iter().filter(|file| !file.name.ends_with("/device.rs"));
    check_lines(files, |line| {
        let word = forbidden.iter().find(|word| !line.test && line.code.contains(**word))?;
        Some(format!("`{word}` belongs to model/src/device.rs: take the device as a value"))
    });
}

#[test]
fn only_a_few_files_write_files() {
    let writers = [
        "bench/src/profile/trace.rs",
        "cli/examples/",
        "model/src/hub/cache.rs",
        "store/src/",
        "trainer/src/checkpoint.rs",
        "trainer/src/checkpoint/bucket.rs",
        "trainer/src/export/",
        "trainer/src/files.rs",
        "trainer/src/report/tracker/",
        "trainer/src/run/begin.rs",
        "trainer/src/sampling/collector/publication.rs",
    ];
    let write =
        ["fs::write(", "fs::rename(", "fs::copy(", "fs::create_dir", "fs::remove_", "File::create", "OpenOptions"];
    let files = rust_files().into_iter().filter(|file| !writers.iter().any(|writer| file.name.starts_with(writer)));
    check_lines(files, |line| {
        let word = write.iter().find(|word| !line.test && line.code.contains(**word))?;
        Some(format!(
            "`{word}`: what a run leaves behind is written by store, snapshot, trackers, the run folder and copies of shared runs alone"
        ))
    });
}

#[test]
fn randomness_has_an_address() {
    let ambient =
        ["thread_rng", "rand::rng(", "from_entropy", "from_os_rng", "Tensor::rand", ".multinomial(", "manual_seed"];
    check_lines(rust_files(), |line| {
        let word = ambient.iter().find(|word| !line.test && line.code.contains(**word))?;
        Some(format!("`{word}` draws from nowhere in particular: take a `schema::Seed` and name the draw"))
    });
}

#[test]
fn every_dependency_is_used() {
    // A dependency on torch-sys is what hands libtorch's folder to the crate's build script, cc is for such a script, and
    // reqwest gives object_store's own use of it TLS.
    const FOR_THE_BUILD: [&str; 3] = ["torch-sys", "cc", "reqwest"];
    let mut wrong = Vec::new();
    for room in ROOMS {
        let manifest = read(&workspace().join(room).join("Cargo.toml"));
        let sources: Vec<SourceFile> = rust_files()
            .into_iter()
            .filter(|file| file.name.starts_with(&format!("{room}/")) && !file.is_test())
            .collect();
        for (number, name) in dependencies(&manifest) {
            let crate_name = name.replace('-', "_");
            let used = sources.iter().flat_map(SourceFile::lines).any(|line| has_word(line.code, &crate_name));
            if !used && !FOR_THE_BUILD.contains(&name.as_str()) {
                wrong.push(format!("{room}/Cargo.toml:{number}: `{name}` is used nowhere in {room}/src: remove it"));
            }
        }
    }
    check(wrong);
}

#[test]
fn every_config_is_explained() {
    let readme = fs::read_to_string(workspace().join("configs/README.md")).unwrap_or_default();
    let configs = files_below(&workspace().join("configs"), "toml");
    assert!(!configs.is_empty(), "there is nothing in configs/");
    let silent =
        configs.iter().map(|path| name(path)).filter(|name| !readme.contains(name.trim_start_matches("configs/")));
    check(silent.map(|name| format!("{name}:1: configs/README.md does not name it: say there what it is for")));
}

#[test]
fn every_config_key_is_explained() {
    let readme = read(&workspace().join("configs/README.md"));
    let mut wrong = Vec::new();
    for path in files_below(&workspace().join("configs"), "toml") {
        // Defaults included, so that this asks for more than the file says.
        for line in crate::configs::resolved(&path).lines() {
            let Some((key, _)) = line.split_once(" = ") else { continue };
            if !["`", ".", " "].iter().any(|before| readme.contains(&format!("{before}{key}`"))) {
                wrong.push(format!("configs/README.md:1: it does not explain `{key}`, which {} has", name(&path)));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    check(wrong);
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for path in documents() {
        let folder = path.parent().expect("a file lies in a folder");
        for (number, target) in links(&read(&path)) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:") && !folder.join(file).exists()
            {
                wrong.push(format!("{}:{number}: there is no {target}: correct the link", name(&path)));
            }
        }
    }
    check(wrong);
}

#[test]
fn the_changelog_knows_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = read(&workspace().join("CHANGELOG.md"));
    assert!(changelog.contains(&format!("## [{version}]")), "CHANGELOG.md:1: add a section `## [{version}]`");
}

#[test]
fn the_search_itself_is_right() {
    let text =
        "[Read](a.md) and ![curve](b.svg \"title\")\n```\n[not](c.md)\n```\nno `[link](d.md)` here, [this](e.md#f)";
    let found: Vec<(usize, String)> = links(text);
    assert_eq!(found, [(1, "a.md".into()), (1, "b.svg".into()), (5, "e.md#f".into())]);

    let manifest =
        "[package]\nname = \"x\"\n[dependencies]\nserde.workspace = true\na-b = \"1\"\n\n[dev-dependencies]\nc = \"1\"";
    assert_eq!(dependencies(manifest), [(4, "serde".into()), (5, "a-b".into())]);

    assert!(
        has_word("use half::bf16;", "half") && !has_word("let behalf = 1;", "half") && !has_word("half_way()", "half")
    );

    let file = SourceFile {
        name: "x/src/a.rs".into(),
        path: PathBuf::from("x/src/a.rs"),
        text: "a(); // b\n#[cfg(test)]\nmod tests {}".into(),
    };
    let lines: Vec<(usize, &str, bool)> = file.lines().map(|line| (line.number, line.code, line.test)).collect();
    assert_eq!(lines, [(1, "a(); ", false), (2, "#[cfg(test)]", true), (3, "mod tests {}", true)]);
}

struct SourceFile {
    /// Path from the root of the checkout.
    name: String,
    path: PathBuf,
    text: String,
}

struct Line<'a> {
    number: usize,
    /// The line without its comment.
    code: &'a str,
    /// True if this line is part of a test.
    test: bool,
}

impl SourceFile {
    fn is_test(&self) -> bool {
        self.name.contains("/tests/") || self.name.ends_with("/tests.rs")
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        // Tests stand last in a file.
        let mut test = self.is_test();
        self.text.lines().enumerate().map(move |(index, line)| {
            test |= line.starts_with("#[cfg(test)]");
            let code = line.split_once("//").map_or(line, |(code, _)| code);
            Line { number: index + 1, code, test }
        })
    }
}

fn check(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn check_lines(files: impl IntoIterator<Item = SourceFile>, fault: impl Fn(&Line) -> Option<String>) {
    check(files.into_iter().flat_map(|file| {
        let found = file.lines().filter_map(|line| Some(format!("{}:{}: {}", file.name, line.number, fault(&line)?)));
        found.collect::<Vec<_>>()
    }));
}

fn rust_files() -> Vec<SourceFile> {
    let paths = ROOMS.iter().flat_map(|room| files_below(&workspace().join(room), "rs"));
    let files: Vec<SourceFile> = paths.map(|path| SourceFile { name: name(&path), text: read(&path), path }).collect();
    assert!(files.len() > ROOMS.len(), "found only {} Rust files: is the search broken?", files.len());
    files
}

/// The Markdown files that belong to this repository.
fn documents() -> Vec<PathBuf> {
    let folders = ROOMS.iter().chain(&["docs", "configs"]);
    let nested = folders.flat_map(|folder| files_below(&workspace().join(folder), "md"));
    let root = fs::read_dir(workspace()).expect("the checkout can be listed").map(|entry| entry.unwrap().path());
    root.filter(|path| path.extension().is_some_and(|it| it == "md")).chain(nested).collect()
}

/// The files below a folder with the given extension, in a fixed order.
fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The names under `[dependencies]`, each with its line.
fn dependencies(manifest: &str) -> Vec<(usize, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim() == "[dependencies]";
        } else if inside && let Some(end) = line.find(['.', ' ', '=']) {
            found.push((index + 1, line[..end].to_owned()));
        }
    }
    found
}

/// The targets of Markdown links outside code, each with its line.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Odd pieces between backticks are code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for piece in prose.split("](").skip(1) {
            let target = piece.split([')', ' ']).next().unwrap_or_default();
            found.push((index + 1, target.to_owned()));
        }
    }
    found
}

fn has_word(code: &str, word: &str) -> bool {
    let part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word).any(|(start, _)| {
        !code[..start].ends_with(part_of_word) && !code[start + word.len()..].starts_with(part_of_word)
    })
}

fn name(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).display().to_string()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
