//! `tributary stream policy`: the IAM policy under which a part of the pipeline works; and the same beside an error that it mends.

use std::process::ExitCode;

use anyhow::bail;
use streams::config::{Config as Store, KinesisOptions};
use streams::iam::{self, Place, Role};

use super::Named;
use crate::cli::{StreamPolicyArgs, StreamRole};
use crate::config::Config;

pub(super) fn run(args: &StreamPolicyArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load_one(&args.config)?;
    let Store::Kinesis(options) = &config.streams.provider else {
        bail!("the configuration's streams are not on Kinesis: there is nothing that IAM would allow or refuse");
    };
    let role = match args.role {
        StreamRole::Producer => Role::Producer,
        StreamRole::Consumer => Role::Consumer,
        StreamRole::Operator => Role::Operator,
    };
    println!("{}", text(&config, options, role, args.account.clone(), args.key.clone())?);
    Ok(ExitCode::SUCCESS)
}

fn text(
    config: &Config,
    options: &KinesisOptions,
    role: Role,
    account: Option<String>,
    key: Option<String>,
) -> anyhow::Result<String> {
    // An alias or an id is none of the resources that a policy speaks of.
    let encryption_key = key.or_else(|| options.encryption_key.clone().filter(|key| key.starts_with("arn:")));
    let place = Place { region: options.region.clone(), account, encryption_key };
    let streams = Named::new(config, &config.load_contracts()?).all();
    Ok(format!("{:#}", iam::policy(role, &streams, &place)))
}

/// What mends a refusal: the policy of the role, with the account that the refused resource is in. None where it is another error.
pub(in crate::commands) fn remedy(config: &Config, role: Role, error: &anyhow::Error) -> Option<String> {
    let refused = error.chain().find_map(|cause| cause.downcast_ref::<streams::Error>())?;
    let (streams::Error::Forbidden { resource, .. }, Store::Kinesis(options)) = (refused, &config.streams.provider) else {
        return None;
    };
    // arn:aws:kinesis:eu-central-1:123456789012:stream/shop.events
    let account =
        resource.split(':').nth(4).filter(|account| account.bytes().all(|byte| byte.is_ascii_digit()) && !account.is_empty());
    text(config, options, role, account.map(str::to_owned), None).ok()
}
