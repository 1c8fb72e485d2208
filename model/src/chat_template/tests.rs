//! Values of expressions as Jinja writes them, and templates that are refused.

use super::*;
use proptest::prelude::*;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn render(source: &str, messages: &[Message]) -> Result<String> {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    ChatTemplate::new(source, tokens)?.render(messages, Ending::AssistantOpening)
}

#[test]
fn chatml_opens_the_assistants_turn() {
    let text = render(CHATML, &[message("system", "Be brief."), message("user", "1+1?")]).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn blocks_eat_their_line_and_python_methods_work() {
    let source = "{{ bos_token }}\n{% for m in messages %}\n  {% if m['role'] == 'user' %}\n{{ m['content'].strip().split('|')[-1] }}\n  {% endif %}\n{% endfor %}\n";
    assert_eq!(render(source, &[message("user", "  a|b ")]).unwrap(), "<s>\nb\n");
}

#[test]
fn generation_blocks_only_mark() {
    let source = "{%- for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{%- generation -%} x {%- endgeneration -%}{% endfor %}";
    assert_eq!(render(source, &[message("user", "a")]).unwrap(), "[a]x");
}

#[test]
fn tojson_writes_what_python_writes() {
    let source = "{{ {'a': [1, 2.5, true, none], 'b': '<é>'} | tojson }} {{ [1] | tojson(indent=2) }}";
    assert_eq!(render(source, &[]).unwrap(), "{\"a\": [1, 2.5, true, null], \"b\": \"<é>\"} [\n  1\n]");
}

#[test]
fn a_refusal_carries_the_templates_words() {
    let source =
        "{{ bos_token }}\n{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}";
    let error = render(source, &[message("system", "x")]).unwrap_err();
    assert!(error.is_input());
    assert_eq!(error.to_string(), "chat template, line 2: refuses this conversation: no system role");
}

#[test]
fn a_broken_template_is_named_with_its_line() {
    let error = render("a\n{% for %}", &[]).unwrap_err();
    assert!(error.to_string().starts_with("chat template, line 2: "), "{error}");
}

#[test]
fn strftime_now_shows_the_pinned_moment_and_otherwise_the_clocks() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", BTreeMap::new()).unwrap();
    assert!(template.tells_the_date() && !ChatTemplate::new(CHATML, BTreeMap::new()).unwrap().tells_the_date());
    let show = || template.render(&[], Ending::LastMessage).unwrap();
    let before = Moment::now();
    let shown = show();
    assert!([before, Moment::now()].iter().any(|moment| moment.format("%d %b %Y").unwrap() == shown), "{shown}");
    template.pin_date("2025-12-31T23:59:50".parse().unwrap());
    assert_eq!(show(), "31 Dec 2025");
    template.pin_date("2026-01-04T00:00:00".parse().unwrap());
    assert_eq!(show(), "04 Jan 2026");
}

/// Each expression, and what Python's Jinja writes for it as `transformers` sets it up.
#[test]
fn expressions_have_jinjas_values() {
    for (expression, expected) in [
        (
            "[none is iterable, 1 is iterable, 'a' is iterable, {} is iterable, x is iterable]",
            "[False, False, True, True, True]",
        ),
        (
            "[none is sequence, 1 is sequence, 'a' is sequence, {} is sequence, range(2) is sequence]",
            "[False, False, True, True, True]",
        ),
        (
            "[(1, 2) is sequence, [] is sequence, x is sequence, {'a': 1}.items() is sequence]",
            "[True, True, True, False]",
        ),
        (
            "[range is callable, 'a' is callable, {} is callable, none is callable, raise_exception is callable]",
            "[True, False, False, False, True]",
        ),
        ("range(3) | list", "[0, 1, 2]"),
        ("range(5, 1, -2) | list", "[5, 3]"),
        ("range(1, 4)[1]", "2"),
        ("range(4) | length", "4"),
        ("'a.b.c'.rsplit('.', 1)", "['a.b', 'c']"),
        ("' a  b c '.rsplit(none, 1)", "[' a  b', 'c']"),
        ("' a  b c '.rsplit()", "['a', 'b', 'c']"),
        ("'a.b.c'.split('.', maxsplit=1)", "['a', 'b.c']"),
        ("'a.b.c'.split('.', -1)", "['a', 'b', 'c']"),
        ("' a b '.split()", "['a', 'b']"),
        ("'a=b=c'.partition('=')", "('a', '=', 'b=c')"),
        ("'abc'.partition('=')", "('abc', '', '')"),
        ("'a=b=c'.rpartition('=')", "('a=b', '=', 'c')"),
        ("'abc'.removeprefix('a') ~ 'abc'.removesuffix('c') ~ 'abc'.removeprefix('x')", "bcababc"),
        ("'-7'.zfill(4) ~ '7'.zfill(3) ~ '777'.zfill(2)", "-007007777"),
        ("'[' ~ 'ab'.center(5) ~ ']' ~ 'abc'.center(6, '*') ~ 'a'.ljust(3, '.') ~ 'a'.rjust(2)", "[  ab ]*abc**a.. a"),
        ("{'b': 1, 'a': [1, 2]} | tojson(sort_keys=true)", "{\"a\": [1, 2], \"b\": 1}"),
        ("{'b': 1, 'a': [1, 2]} | tojson(separators=(',', ':'))", "{\"b\":1,\"a\":[1,2]}"),
        ("'é😀\x7f' | tojson(ensure_ascii=true)", "\"\\u00e9\\ud83d\\ude00\\u007f\""),
        ("'é' | tojson(true)", "\"\\u00e9\""),
        ("[1e-7, 1e16, 1.0, 3] | tojson", "[1e-07, 1e+16, 1.0, 3]"),
        (
            "{'a': [], 'b': {}, 'c': [1, [2]]} | tojson(indent=1)",
            "{\n \"a\": [],\n \"b\": {},\n \"c\": [\n  1,\n  [\n   2\n  ]\n ]\n}",
        ),
        ("[1] | tojson(indent='--')", "[\n--1\n]"),
        ("[1, 2] | tojson(indent=0)", "[\n1,\n2\n]"),
        ("1e-7", "1e-07"),
        ("2.0", "2.0"),
        ("[true, none, 1.5, 'a']", "[True, None, 1.5, 'a']"),
    ] {
        let text =
            render(&format!("{{{{ {expression} }}}}"), &[]).unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!(text, expected, "{expression}");
    }
}

#[test]
fn tools_that_are_not_there_are_skipped() {
    let source = "{%- if not tools is defined %}{% set tools = [] %}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{%- if tools is iterable and tools | length > 0 %}<tools>{{ tools | tojson }}</tools>{%- endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let text = render(source, &[message("user", "hi")]).unwrap();
    assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn line_ends_of_windows_are_line_breaks_in_templates_alone() {
    let source = "{% for m in messages %}\r\n<|im_start|>{{ m.role }}\r\n{{ m.content }}<|im_end|>\r\n{% endfor %}\r\n{% if add_generation_prompt %}\r\n<|im_start|>assistant\r\n{% endif %}\r\n";
    let expected = "<|im_start|>user\none\r\ntwo<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(source, &[message("user", "one\r\ntwo")]).unwrap(), expected);
    let mac = source.replace('\n', "");
    assert_eq!(render(&mac, &[message("user", "one\r\ntwo")]).unwrap(), expected);
    assert_eq!(render("{{ 'a\\r\\nb' }}", &[]).unwrap(), "a\r\nb", "an escape is not a line end");
}

#[test]
fn a_last_message_is_left_open() {
    let open = |source: &str, content: &str| {
        let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
        template.render(&[message("user", "Why?"), message("assistant", content)], Ending::InsideLastMessage)
    };
    let start = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(open(CHATML, "Let me think.\n<think>").unwrap(), format!("{start}Let me think.\n<think>"));
    assert_eq!(open(CHATML, " Because \n").unwrap(), format!("{start} Because \n"));
    assert_eq!(open(CHATML, "").unwrap(), start);
    let trims = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]{% endfor %}";
    assert_eq!(open(trims, " Because \n").unwrap(), "[user]Why?[end][assistant]Because");
    let forgets = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    let error = open(forgets, "a").unwrap_err();
    assert!(error.is_input() && error.to_string().contains("leaves out the last message"), "{error}");
}

/// Each template would take all time or memory. All of them end in a sentence, and soon.
#[test]
fn a_template_has_limits() {
    let double = |expression: &str, start: &str, use_it: &str| {
        format!(
            "{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s = {expression} %}}{{% endfor %}}{use_it}"
        )
    };
    let endless = "the chat template does not end";
    for (source, sentence) in [
        ("{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}a".to_owned(), endless),
        ("{{ \"{:>9999999999}\".format(\"a\") }}".to_owned(), endless),
        ("{{ \"{:>999999999999999999999999}\".format(\"a\") }}".to_owned(), endless),
        ("{{ \"{:.999999999f}\".format(1.0) }}".to_owned(), endless),
        ("{{ \"%9999999999d\" | format(1) }}".to_owned(), endless),
        ("{{ 'a' | indent(10000000000, true) }}".to_owned(), endless),
        ("{{ [1] | tojson(indent=100000000000) }}".to_owned(), "`indent`"),
        ("{{ 'a'.center(10000000000) }}".to_owned(), endless),
        ("{{ 'a'.zfill(10000000000) }}".to_owned(), endless),
        ("{{ 'a'.ljust(10000000000) }}".to_owned(), endless),
        ("{{ 'a' * 10000000000 }}".to_owned(), "chat template"),
        ("{{ [1] * 10000000000 }}".to_owned(), "chat template"),
        ("{{ 'abc'.replace('', 'x' * 1000).replace('', 'x' * 1000).replace('', 'x' * 1000).replace('', 'x' * 1000) }}".to_owned(), endless),
        (double("ns.s ~ ns.s", "'a'", "{{ ns.s }}"), endless),
        (double("ns.s + ns.s", "'a'", "{{ ns.s }}"), endless),
        (double("[ns.s, ns.s]", "'a'", "{{ ns.s | tojson | length }}"), endless),
        (double("[ns.s, ns.s]", "'a'", "{{ ns.s | tojson(sort_keys=true) | length }}"), endless),
        ("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}".to_owned(), "the chat template writes more than 16 MB"),
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_owned(), "chat template"),
    ] {
        let begun = std::time::Instant::now();
        let error = render(&source, &[]).expect_err(&source);
        assert!(error.is_input() && error.to_string().contains(sentence), "{source}: {error}");
        assert!(begun.elapsed().as_secs() < 20, "{source}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_long_conversation_is_within_the_limits() {
    let words = "Again and again. ".repeat(100);
    let messages: Vec<Message> = (0..2000).map(|turn| message(["user", "assistant"][turn % 2], &words)).collect();
    let source = "{% for m in messages %}[{{ m.role }}]{{ m.content.strip().replace('Again', 'again') | trim }}{% if not loop.last %}\n{% endif %}{% endfor %}";
    assert_eq!(render(source, &messages).unwrap().len(), 3_415_000);
}

proptest! {
    /// A further turn leaves the text before it unchanged: the prompt of the next turn begins with the last one.
    #[test]
    fn chatml_only_appends(turns in prop::collection::vec(("system|user|assistant", ".{0,20}"), 1..5)) {
        let messages: Vec<Message> = turns.iter().map(|(role, content)| message(role, content)).collect();
        let template = ChatTemplate::new(CHATML, BTreeMap::new()).unwrap();
        let all = template.render(&messages, Ending::LastMessage).unwrap();
        let but_last = template.render(&messages[..messages.len() - 1], Ending::LastMessage).unwrap();
        prop_assert!(all.starts_with(&but_last));
        let open = template.render(&messages, Ending::AssistantOpening).unwrap();
        prop_assert_eq!(open, all + "<|im_start|>assistant\n");
    }
}
