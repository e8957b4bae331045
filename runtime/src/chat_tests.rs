#![allow(clippy::unwrap_used)]
use super::*;

fn info(template: &str) -> ChatInfo {
    ChatInfo { template: template.into(), bos: Some("<s>".into()), eos: Some("</s>".into()) }
}

fn render(template: &str, messages: &[Message]) -> Result<String> {
    ChatTemplate(&info(template)).render(messages, true)
}

fn talk() -> Vec<Message> {
    [("system", "Be brief."), ("user", " Hi\n"), ("assistant", "Hello."), ("user", "Bye")]
        .map(|(role, content)| Message::new(role, content))
        .to_vec()
}

/// Roles between markers, a default system message, the head of the answer.
#[test]
fn marked_roles() {
    let template = "{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}
{%- endif %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}";
    let said = render(template, &talk()).unwrap();
    let want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(said, want);
    assert!(
        render(template, &[Message::new("user", "x")])
            .unwrap()
            .starts_with("<|im_start|>system\nYou help.<|im_end|>\n")
    );
}

/// The system message inside the first instruction, roles that must take turns, slices and a namespace.
#[test]
fn instructions_in_brackets() {
    let template = "{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}
{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- set ns = namespace(turns=0) -%}
{{ bos_token }}
{%- for m in rest -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate') }}
{%- endif -%}
{%- if m['role'] == 'user' -%}
{%- set ns.turns = ns.turns + 1 -%}
{%- if loop.first and system is defined -%}
{{ '[INST] <<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'].strip() + ' [/INST]' }}
{%- else -%}
{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}
{%- endif -%}
{%- else -%}
{{ ' ' + m['content'] + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if ns.turns > 9 -%}{{ 'long' }}{%- endif -%}";
    let said = render(template, &talk()).unwrap();
    assert_eq!(said, "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello.</s>[INST] Bye [/INST]");
    let wrong = [Message::new("user", "a"), Message::new("user", "b")];
    let refused = render(template, &wrong).unwrap_err().to_string();
    assert!(refused.contains("roles must alternate"), "{refused}");
}

/// Headers between markers, contents trimmed by a filter, an answer's role renamed.
#[test]
fn headers_and_renamed_roles() {
    let template = "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}
{{ '<start_of_turn>' ~ role ~ '\n' ~ m.content | trim ~ '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";
    let said = render(template, &talk()[1..3]).unwrap();
    let want =
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(said, want);
}

/// Tools that are not there, JSON, methods of texts and tables, a macro.
#[test]
fn what_longer_templates_use() {
    let template = "{%- macro head(role) -%}<|{{ role.title() }}|>{%- endmacro -%}
{%- if tools is not none and tools | length > 0 -%}{{ tools | tojson(indent=4) }}{%- endif -%}
{%- for m in messages -%}
{{ head(m.role) }}{{ m.get('name', '-') }}{{ m | tojson }}{{ m.content.split(' ')[-1].rstrip('.').upper() }}
{%- if m.content.startswith('Be') and 'rief' in m.content -%}!{%- endif -%}
{%- for key, value in m.items() -%}[{{ key }}]{%- endfor -%}
{%- if not loop.last -%};{%- endif -%}
{%- endfor -%}";
    let said = render(template, &talk()[..1]).unwrap();
    assert_eq!(said, "<|System|>-{\"role\": \"system\", \"content\": \"Be brief.\"}BRIEF![role][content]");
    let quoted = render("{{ messages | tojson }}", &[Message::new("user", "a<b> & 'ä' \"q\"")]).unwrap();
    assert_eq!(quoted, "[{\"role\": \"user\", \"content\": \"a<b> & 'ä' \\\"q\\\"\"}]");
}

/// Bad templates are errors and not hangs.
#[test]
fn bad_templates_are_errors() {
    let fault = |template: &str| render(template, &talk()).unwrap_err().to_string();
    assert!(fault("{% for m in messages %}").contains("syntax error"), "{}", fault("{% for m in messages %}"));
    assert!(fault("{{ nothing() }}").contains("nothing"));
    assert!(fault("{{ messages[0].content.encode('utf8') }}").contains("encode"));
}

/// A value that is there twice in each of 60 levels, and one that is in itself.
#[test]
fn values_are_weighed_before_they_are_written() {
    let doubled = |then: &str| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{then}"
        )
    };
    for then in
        ["{{ ns.x }}", "{{ ns.x | string }}", "{{ ns.x | tojson }}", "{{ [ns.x] | join(',') }}", "{{ ns.x | upper }}"]
    {
        let said = render(&doubled(then), &talk()).unwrap_err().to_string();
        assert!(said.contains("too large to be written"), "{then}: {said}");
    }
    let own = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}";
    let said = render(own, &talk()).unwrap_err().to_string();
    assert!(said.contains("too deep to be written"), "{said}");
    assert_eq!(
        render("{{ [1, [2, {'a': [3]}]] }}{{ 'a\nb' | indent(2) }}", &talk()).unwrap(),
        "[1, [2, {'a': [3]}]]a\n  b"
    );
}
