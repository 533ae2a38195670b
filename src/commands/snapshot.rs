//! `tributary snapshot`: has a running importer read a table, or a range of its keys, again.

use std::process::ExitCode;

use anyhow::bail;
use hyper::Method;
use schemas::change::EntityKey;
use serde_json::json;

use super::api_client;
use crate::cli::SnapshotArgs;

pub(crate) async fn run(args: &SnapshotArgs) -> anyhow::Result<ExitCode> {
    let source = match &args.source {
        Some(source) => source.clone(),
        None => {
            let status = api_client::get(&args.api, "/v1/status").await?;
            if let Some(several) = status["sources"].as_array() {
                let names: Vec<&str> = several.iter().filter_map(|source| source["name"].as_str()).collect();
                bail!("there are several sources ({}): say which one is meant, with --source", names.join(", "));
            }
            status["source"]["name"].as_str().unwrap_or_default().to_owned()
        }
    };
    let key = |text: &Option<String>| text.as_ref().map(|text| EntityKey::from_text(text.as_str()).parts());
    let body = json!({"table": args.table, "from": key(&args.from), "to": key(&args.to)});
    let (status, answer) =
        api_client::ask(&args.api, Method::POST, &format!("/v1/sources/{source}/snapshots"), Some(&body)).await?;
    if !status.is_success() {
        return Err(api_client::refused(status, &answer));
    }
    println!(
        "{} is being read again as generation {}; `tributary status` tells how far it is.",
        args.table, answer["generation"]
    );
    Ok(ExitCode::SUCCESS)
}
