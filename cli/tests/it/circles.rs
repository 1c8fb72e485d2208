//! The top-level modules of a crate import each other without circles.
//!
//! A module then can be read, moved or replaced with the modules below it alone. Imports are the paths that begin with
//! `crate::`, or with enough `super::` to reach the crate's root; names that `lib.rs` re-exports count for the module
//! that holds them. Code under `#[cfg(test)]` does not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use crate::workspace;

/// The rooms that have no circle.
const ROOMS: &[&str] = &["schema", "model", "rollout", "reward", "store", "trainer", "cli"];

#[test]
fn no_circle_of_imports_among_the_top_level_modules_of_a_crate() {
    let mut wrong = Vec::new();
    for room in ROOMS {
        let files = Files::read(room);
        let graph = Graph::of(&files);
        assert!(graph.arrows.len() > 1, "{room} has hardly any imports: is the search broken?");
        wrong.extend(graph.circles().iter().map(|circle| graph.describe(room, circle)));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_search_finds_the_arrows_and_the_circle_of_an_example() {
    let files = Files::new(&[
        (
            "lib.rs",
            "pub mod a;\nmod b;\npub mod c;\nmod d;\n#[cfg(test)]\nmod probe;\npub use d::{Deep, other::Name as Alias};\n",
        ),
        ("a.rs", "use crate::{\n    b::{c, One},\n    Deep,\n};\nuse crate::c::Two; // crate::probe\n"),
        ("a/nested.rs", "use super::super::c::Two;\nuse super::b;\n"),
        ("b.rs", "#[cfg(test)]\nmod tests;\nuse std::fmt;\n\n#[cfg(test)]\nmod more {\n    use crate::a::One;\n}\n"),
        ("b/tests.rs", "use crate::a::One;\n"),
        ("c.rs", "fn two() {\n    super::d::three(crate::Alias);\n}\n"),
        ("d.rs", "fn three() {\n    let supercrate::b = 1;\n    crate::a::go();\n}\n"),
        ("probe.rs", "use crate::a::One;\n"),
    ]);
    let graph = Graph::of(&files);
    let arrows: Vec<String> = graph.arrows.keys().map(|(from, to)| format!("{from}{to}")).collect();
    assert_eq!(arrows, ["ab", "ac", "ad", "cd", "da"]);
    assert_eq!(graph.circles(), [vec!["a", "d"], vec!["c", "d", "a"]]);
    assert_eq!(
        graph.describe("room", &["a".into(), "d".into()]),
        "room: a imports d (room/src/a.rs:3), d imports a (room/src/d.rs:3): a circle; move what they share into a module \
         below both, or pass it in as a value"
    );
}

#[test]
fn a_long_circle_is_named_by_its_shortest_way() {
    let files = Files::new(&[
        ("lib.rs", ""),
        ("a.rs", "use crate::b;"),
        ("b.rs", "use crate::c;\nuse crate::e;"),
        ("c.rs", "use crate::d;"),
        ("d.rs", "use crate::a;"),
        ("e.rs", ""),
    ]);
    assert_eq!(Graph::of(&files).circles(), [["a", "b", "c", "d"]]);
}

/// The source files of a crate: the path below `src` without its extension, and the text.
struct Files(BTreeMap<Vec<String>, String>);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let module = |path: &str| path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        Self(files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect())
    }

    fn read(room: &str) -> Self {
        let source = workspace().join(room).join("src");
        let mut files = BTreeMap::new();
        let mut folders = vec![source.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder of sources can be listed") {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    files.insert(module_of(&source, &path), std::fs::read_to_string(&path).unwrap());
                }
            }
        }
        Self(files)
    }
}

/// The components of a file's path below the sources, without the extension.
fn module_of(source: &Path, path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let below = path.strip_prefix(source).expect("the file lies below the sources");
    below.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// The imports among the top-level modules of a crate.
struct Graph {
    /// From and to, with the first file and line of the import.
    arrows: BTreeMap<(String, String), (String, usize)>,
}

impl Graph {
    fn of(files: &Files) -> Self {
        let is_root = |module: &[String]| module.len() == 1 && ["lib", "main"].contains(&module[0].as_str());
        let top: BTreeSet<&str> =
            files.0.keys().filter(|module| !is_root(module)).map(|module| module[0].as_str()).collect();
        let mut tests = Vec::new();
        let mut code = BTreeMap::new();
        for (module, text) in &files.0 {
            let (shipped, own_tests) = without_tests(text);
            let parent: &[String] = if is_root(module) { &[] } else { module };
            tests.extend(own_tests.into_iter().map(|name| [parent, &[name]].concat()));
            code.insert(module, shipped);
        }
        let mut exported = BTreeMap::new();
        for (_, shipped) in code.iter().filter(|(module, _)| is_root(module)) {
            exported.extend(exports(shipped));
        }
        let mut arrows = BTreeMap::new();
        for (module, shipped) in &code {
            if is_root(module) || tests.iter().any(|test| module.starts_with(test)) {
                continue;
            }
            for (line, name) in imports(shipped, module.len()) {
                let target = if top.contains(name.as_str()) { Some(&name) } else { exported.get(&name) };
                let Some(target) = target.filter(|target| **target != module[0]) else { continue };
                if tests.iter().any(|test| test[..] == [target.clone()]) {
                    continue;
                }
                let first = (format!("{}.rs", module.join("/")), line);
                arrows.entry((module[0].clone(), target.clone())).or_insert(first);
            }
        }
        Self { arrows }
    }

    fn next<'a>(&'a self, from: &'a str) -> impl Iterator<Item = &'a str> {
        self.arrows.keys().filter(move |(start, _)| start == from).map(|(_, to)| to.as_str())
    }

    /// The shortest circle through each module that is in one and in none that was found before.
    fn circles(&self) -> Vec<Vec<String>> {
        let modules: BTreeSet<&str> = self.arrows.keys().map(|(from, _)| from.as_str()).collect();
        let mut found: Vec<Vec<String>> = Vec::new();
        for start in modules {
            if found.iter().flatten().any(|known| known == start) {
                continue;
            }
            found.extend(self.circle_through(start));
        }
        found
    }

    fn circle_through(&self, start: &str) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(module) = queue.pop_front() {
            for next in self.next(module) {
                if next == start {
                    let mut circle: Vec<String> = std::iter::successors(Some(module), |it| came_from.get(it).copied())
                        .map(str::to_owned)
                        .collect();
                    circle.reverse();
                    return Some(circle);
                }
                if next != start && !came_from.contains_key(next) {
                    came_from.insert(next, module);
                    queue.push_back(next);
                }
            }
        }
        None
    }

    fn describe(&self, room: &str, circle: &[String]) -> String {
        let steps = circle.iter().zip(circle.iter().cycle().skip(1)).map(|(from, to)| {
            let (file, line) = &self.arrows[&(from.clone(), to.clone())];
            format!("{from} imports {to} ({room}/src/{file}:{line})")
        });
        format!(
            "{room}: {}: a circle; move what they share into a module below both, or pass it in as a value",
            steps.collect::<Vec<_>>().join(", ")
        )
    }
}

/// The text without comments and without items under `#[cfg(test)]`, line by line, and the names of the latter that are
/// modules.
fn without_tests(text: &str) -> (String, Vec<String>) {
    let (mut shipped, mut tests) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let code = line.split_once("//").map_or(line, |(code, _)| code);
        shipped.push_str(if line.starts_with("#[cfg(test)]") { "" } else { code });
        shipped.push('\n');
        if !line.starts_with("#[cfg(test)]") {
            continue;
        }
        // One line that ends with a semicolon, or everything up to a brace in the first column.
        for (index, line) in lines.by_ref().enumerate() {
            shipped.push('\n');
            let name = line.split_whitespace().skip_while(|word| *word != "mod").nth(1);
            if index == 0
                && let Some(name) = name.and_then(|name| name.strip_suffix(';'))
            {
                tests.push(name.to_owned());
            }
            if line.ends_with(';') && !line.starts_with(' ') || line.starts_with('}') {
                break;
            }
        }
    }
    (shipped, tests)
}

/// The names that `lib.rs` re-exports, each with the module that holds it.
fn exports(root: &str) -> BTreeMap<String, String> {
    let statements = root.split(';').filter_map(|statement| statement.split_once("pub use "));
    statements
        .flat_map(|(_, tree)| {
            let mut words = words(tree);
            let module = words.next();
            words.filter_map(move |name| Some((name.to_owned(), module?.to_owned())))
        })
        .collect()
}

/// The names at the crate's root that a file in this depth of modules reaches, each with its line.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (prefix, start) in [("crate::".to_owned(), "crate::"), ("super::".repeat(depth), "super::")] {
        for (at, _) in code.match_indices(&prefix) {
            let before = &code[..at];
            let rest = &code[at + prefix.len()..];
            let continues = |text: &str| text.ends_with(|it: char| it.is_alphanumeric() || it == '_');
            // A longer chain of `super` is counted from its beginning.
            if continues(before) || start == "super::" && before.ends_with("super::") || rest.starts_with("super::") {
                continue;
            }
            let offset = at + prefix.len();
            for (index, name) in first_names(rest) {
                let line = code[..offset + index].matches('\n').count() + 1;
                found.push((line, name.to_owned()));
            }
        }
    }
    found
}

/// The first names of a path or of each path of a group in braces, with their offsets.
fn first_names(tree: &str) -> Vec<(usize, &str)> {
    let name_at = |at: usize| {
        let rest = &tree[at..];
        let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(rest.len());
        (end > 0).then(|| (at, &rest[..end]))
    };
    if !tree.starts_with('{') {
        return name_at(0).into_iter().collect();
    }
    let mut found = Vec::new();
    let (mut depth, mut expects) = (0, false);
    for (at, character) in tree.char_indices() {
        match character {
            '{' => {
                depth += 1;
                expects = depth == 1;
            }
            '}' => depth -= 1,
            ',' => expects = depth == 1,
            _ if character.is_whitespace() => {}
            _ if expects => {
                found.extend(name_at(at));
                expects = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// The names in a piece of code.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|it: char| !it.is_alphanumeric() && it != '_').filter(|word| !word.is_empty())
}
