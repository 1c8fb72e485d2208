//! The language of docs and comments: an item doc names its thing first, and no sentence hides its subject in a pronoun.
//!
//! Every area (a room, `configs`, `docs`, `scripts`, and `root` for the files at the top) is held to it.

use super::{ROOMS, files_below, has_word, name, read, rust_files};
use crate::workspace;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The areas beside the rooms: folders, and the files at the top of the checkout.
const OTHER_AREAS: [&str; 4] = ["configs", "docs", "scripts", "root"];

/// First words of a doc that asks a question and does not name its thing.
const QUESTION_WORDS: [&str; 10] = [
    concat!("Wh", "at"),
    concat!("Wh", "o"),
    concat!("Wh", "om"),
    concat!("Wh", "ose"),
    concat!("Who", "ever"),
    concat!("Whe", "ther"),
    concat!("Ho", "w"),
    concat!("Wh", "y"),
    concat!("No", "body"),
    concat!("Some", "body"),
];

/// Pronouns that stand in for a subject.
const PRONOUNS: [&str; 4] =
    [concat!("who", "ever"), concat!("no", "body"), concat!("some", "body"), concat!("whom", "ever")];

/// Half of the source files are shorter than this.
const MEDIAN_LINES: usize = 150;

#[test]
fn docs_name_their_thing_and_sentences_their_subject() {
    let mut findings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in rust_files() {
        let found = questions(&file.text).into_iter().chain(hidden_subjects(&comments(&file.text)));
        findings.entry(area(&file.name)).or_default().extend(found.map(|found| located(&file.name, found)));
    }
    for path in prose_files() {
        let (name, text) = (name(&path), read(&path));
        let text = if path.extension().is_some_and(|it| it == "md") { outside_code(&text) } else { text };
        let found = hidden_subjects(&text).into_iter();
        findings.entry(area(&name)).or_default().extend(found.map(|found| located(&name, found)));
    }
    let counts = findings.iter().map(|(area, found)| format!("{area} {}", found.len()));
    let counts = counts.collect::<Vec<_>>().join(", ");
    println!("findings: {counts}");
    let wrong: Vec<String> = findings.values().flatten().cloned().collect();
    assert!(wrong.is_empty(), "\n{}\nfindings of all areas: {counts}", wrong.join("\n"));
}

#[test]
fn half_of_the_source_files_are_short() {
    let sources = rust_files().into_iter().filter(|file| file.name.contains("/src/") && !file.is_test());
    let mut lines: Vec<usize> = sources.map(|file| file.text.lines().count()).collect();
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    println!("{} files, median {median} lines", lines.len());
    assert!(
        median < MEDIAN_LINES,
        "the median source file has {median} lines, and should have less than {MEDIAN_LINES}: split some"
    );
}

#[test]
fn the_search_of_the_language_is_right() {
    let what = QUESTION_WORDS[0];
    let found = |text: &str| questions(text).into_iter().map(|(line, _)| line).collect::<Vec<usize>>();
    assert_eq!(found(&format!("//! {what} it is.\n\n/// {what} for.\nfn a() {{}}")), [1, 3]);
    // The first word of the first line decides; a plain comment is no doc.
    assert_eq!(found(&format!("/// The thing.\n/// {what} it is.\n// {what} now?\n/// {what}ever\n")), [0; 0]);
    assert_eq!(found(&format!("    /// `{what}`, a word.\n    /// Next.\n    /// **{what}** else.\n")), [0; 0]);
    assert_eq!(found(&format!("/// One.\n//! {what} then.\n")), [2]);
    assert_eq!(found(&format!("#[doc = \"a\"]\n    /// {what}: that.\n")), [2]);

    let hidden = |text: &str| hidden_subjects(text).into_iter().map(|(line, _)| line).collect::<Vec<usize>>();
    let [whoever, nobody, ..] = PRONOUNS;
    let capital = format!("{}{}", whoever[..1].to_uppercase(), &whoever[1..]);
    assert_eq!(hidden(&format!("{capital} reads,\nis {nobody}.\n{nobody}_pays")), [1, 2]);
    let code = |word: &str| format!("let {word} = 1; // it is\nfn f() {{}} // {word}\n");
    assert_eq!(hidden(&comments(&code(nobody))), [2]);
    let markdown = format!("{nobody} `{nobody}`\n```\n{nobody}\n```\n`{nobody}`\n{nobody}");
    assert_eq!(hidden(&outside_code(&markdown)), [1, 6]);

    assert_eq!(area("store/src/lib.rs"), "store");
    assert_eq!(area("docs/results/a.md"), "docs");
    assert_eq!((area("README.md"), area(".ci/run")), ("root".into(), "root".into()));
    // The files that are searched besides Rust's.
    let names: Vec<String> = prose_files().iter().map(|path| name(path)).collect();
    for file in ["README.md", "Makefile", ".ci/run", "configs/tiny.toml", "scripts/setup.py", "docs/replay.md"] {
        assert!(names.iter().any(|name| name == file), "{file} is not searched");
    }
}

/// Docs whose first word is a question word: the line of each, and advice.
fn questions(text: &str) -> Vec<(usize, String)> {
    let mut before = None;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let marker = ["///", "//!"].into_iter().find(|marker| line.starts_with(marker));
        if let Some(marker) = marker.filter(|marker| before != Some(*marker)) {
            let first = line[marker.len()..].trim_start().split(|letter: char| !letter.is_alphabetic()).next();
            if let Some(word) = QUESTION_WORDS.into_iter().find(|word| first == Some(word)) {
                found.push((index + 1, format!("the doc begins with `{word}`: name the thing first")));
            }
        }
        before = marker;
    }
    found
}

/// Lines with a pronoun for a subject, and advice.
fn hidden_subjects(text: &str) -> Vec<(usize, String)> {
    let advice = |(line, number): (&str, usize)| {
        let line = line.to_lowercase();
        let word = PRONOUNS.into_iter().find(|word| has_word(&line, word))?;
        Some((number, format!("`{word}`: say who or what does it")))
    };
    text.lines().zip(1..).filter_map(advice).collect()
}

/// The comments of Rust code, each on its line.
fn comments(text: &str) -> String {
    text.lines().map(|line| line.split_once("//").map_or("", |(_, comment)| comment).to_owned() + "\n").collect()
}

/// Markdown without its code, line by line.
fn outside_code(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if !fenced && !fence {
            prose.extend(line.split('`').step_by(2));
        }
        prose.push('\n');
    }
    prose
}

/// Every other file with sentences: Markdown, configs, scripts and the checks.
fn prose_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ROOMS.iter().chain(&["configs", "docs", "scripts"]) {
        for ending in ["md", "toml", "py", "sh"] {
            found.extend(files_below(&workspace().join(folder), ending));
        }
    }
    let root = fs::read_dir(workspace()).expect("the checkout can be listed").map(|entry| entry.unwrap().path());
    let plain = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        matches!(ending, Some("md" | "toml")) || path.ends_with("Makefile")
    };
    found.extend(root.filter(plain));
    found.push(workspace().join(".ci/run"));
    found
}

/// The area that a file belongs to.
fn area(file: &str) -> String {
    let folder = Path::new(file).iter().next().and_then(|folder| folder.to_str()).unwrap_or_default();
    let known = ROOMS.iter().chain(&OTHER_AREAS).find(|area| **area == folder);
    known.map_or("root", |area| area).to_owned()
}

fn located(file: &str, (line, fault): (usize, String)) -> String {
    format!("{file}:{line}: {fault}")
}
