//! `/v1/models`, and the paths that load and unload adapters.

use super::body::{json_response, read_json};
use super::failure::Failure;
use super::fields::Fields;
use super::frontend::Frontend;
use super::messages::{Command, ModelCard};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// Maximum length of an adapter's name, in characters; names are shown in errors and lists.
const LONGEST_NAME: usize = 128;

pub(super) async fn list(State(frontend): State<Arc<Frontend>>) -> Response<Body> {
    let models: Vec<Value> = frontend.models().iter().map(|model| described(model, &frontend)).collect();
    json_response(json!({"object": "list", "data": models}).to_string())
}

pub(super) async fn one(State(frontend): State<Arc<Frontend>>, request: Request) -> Response<Body> {
    let name = decoded(request.uri().path().strip_prefix("/v1/models/").unwrap_or_default());
    match frontend.models().iter().find(|model| model.name == name) {
        Some(model) => json_response(described(model, &frontend).to_string()),
        None => Failure::no_model(&name.chars().take(100).collect::<String>(), &frontend.model_names()).into_response(),
    }
}

/// A model in the form of OpenAI's API, with vLLM's additions and the content hash of its policy.
fn described(model: &ModelCard, frontend: &Frontend) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "proxrl",
        "root": model.path.as_ref().map_or_else(|| model.name.clone(), |path| path.display().to_string()),
        "parent": model.path.as_ref().map(|_| &frontend.settings.base),
        "max_model_len": frontend.settings.limits.context,
        "policy_hash": model.policy,
    })
}

pub(super) async fn load(State(frontend): State<Arc<Frontend>>, request: Request) -> Response<Body> {
    let loaded = async {
        let mut fields = Fields::read(&read_json(&frontend, request).await?)?;
        let name = adapter_name(&mut fields)?;
        let path = fields.text("lora_path")?;
        let replace = fields.flag("load_inplace")?;
        fields.finish()?;
        let path = path.ok_or_else(|| Failure::parameter("lora_path", "`lora_path` is missing; give a folder"))?;
        let path = adapter_folder(&frontend, &path)?;
        frontend.ask(|reply| Command::Load { name, path, replace, reply }).await?
    };
    let described = |model| json_response(described(&model, &frontend).to_string());
    loaded.await.map_or_else(Failure::into_response, described)
}

pub(super) async fn unload(State(frontend): State<Arc<Frontend>>, request: Request) -> Response<Body> {
    let unloaded = async {
        let mut fields = Fields::read(&read_json(&frontend, request).await?)?;
        let name = adapter_name(&mut fields)?;
        fields.finish()?;
        frontend.ask(|reply| Command::Unload { name: name.clone(), reply }).await??;
        Ok(name)
    };
    let deleted = |name| json_response(json!({"id": name, "object": "model", "deleted": true}).to_string());
    unloaded.await.map_or_else(Failure::into_response, deleted)
}

fn adapter_name(fields: &mut Fields) -> Result<String, Failure> {
    let name = fields.text("lora_name")?;
    let usable = |name: &String| {
        !name.trim().is_empty() && name.chars().count() <= LONGEST_NAME && !name.chars().any(char::is_control)
    };
    name.filter(usable).ok_or_else(|| {
        Failure::parameter("lora_name", format!("`lora_name` must be a name of 1 to {LONGEST_NAME} characters"))
    })
}

/// Resolves the folder in a request, which must lie below `serve.adapter_root`.
fn adapter_folder(frontend: &Frontend, path: &str) -> Result<PathBuf, Failure> {
    let root = &frontend.settings.adapter_root;
    let folder = root.join(path).canonicalize().ok().filter(|folder| folder.starts_with(root) && folder.is_dir());
    folder.ok_or_else(|| {
        let message = format!(
            "`lora_path` is no folder below {}; adapters elsewhere can be named in [serve.adapters], or allowed by \
             serve.adapter_root",
            root.display()
        );
        Failure::parameter("lora_path", message)
    })
}

/// Decodes the percent signs of a path; a path that does not decode to UTF-8 stays as it is.
fn decoded(path: &str) -> Cow<'_, str> {
    percent_decode_str(path).decode_utf8().unwrap_or(Cow::Borrowed(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_decoded() {
        assert_eq!(decoded("owner%2Fname%20x"), "owner/name x");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%f"), "%zz%f");
        assert_eq!(decoded("%ff"), "%ff");
    }
}
