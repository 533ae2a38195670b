//! The IAM policies under which each part of Tributary works on Kinesis: the least that its calls need.

use schemas::progress::StreamName;
use serde_json::{Value, json};

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The importer, on streams that exist.
    Producer,
    /// The joiner, and whoever tails or counts.
    Consumer,
    /// Whoever makes streams and describes them: `tributary stream`, and the importer where streams are missing.
    Operator,
}

/// Where the streams are. What is `None` is a `*` in the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    pub region: Option<String>,
    pub account: Option<String>,
    /// The ARN of the key that encrypts them; without one the policy says nothing of KMS.
    pub encryption_key: Option<String>,
}

impl Place {
    /// The ARN of a stream here.
    pub fn stream_arn(&self, stream: &StreamName) -> String {
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".to_owned());
        format!("arn:aws:kinesis:{}:{}:stream/{stream}", part(&self.region), part(&self.account))
    }
}

const PRODUCER: &[&str] = &["kinesis:DescribeStreamSummary", "kinesis:ListShards", "kinesis:PutRecords"];
const CONSUMER: &[&str] = &[
    "kinesis:DescribeStreamSummary",
    "kinesis:ListShards",
    "kinesis:GetShardIterator",
    "kinesis:GetRecords",
    // Enhanced fan-out.
    "kinesis:DescribeStreamConsumer",
    "kinesis:RegisterStreamConsumer",
];
const OPERATOR: &[&str] = &[
    "kinesis:CreateStream",
    "kinesis:DescribeStreamSummary",
    "kinesis:ListShards",
    "kinesis:ListTagsForStream",
    "kinesis:AddTagsToStream",
    "kinesis:IncreaseStreamRetentionPeriod",
    "kinesis:StartStreamEncryption",
    "kinesis:UpdateMaxRecordSize",
    "kinesis:UpdateShardCount",
    "kinesis:UpdateStreamMode",
];

/// The policy that lets the role work on these streams; a name may end in `*`.
pub fn policy(role: Role, streams: &[StreamName], place: &Place) -> Value {
    let arns: Vec<_> = streams.iter().map(|stream| place.stream_arn(stream)).collect();
    let allow = |name: &str, actions: &[&str], resources: Value| json!({"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources});
    let (name, actions, key_action) = match role {
        Role::Producer => ("TributaryProducer", PRODUCER, Some("kms:GenerateDataKey")),
        Role::Consumer => ("TributaryConsumer", CONSUMER, Some("kms:Decrypt")),
        // Kinesis looks at the key when it begins to encrypt with it.
        Role::Operator => ("TributaryOperator", OPERATOR, Some("kms:DescribeKey")),
    };
    let mut statements = vec![allow(name, actions, json!(arns))];
    match role {
        Role::Producer => {}
        // The consumers of a stream are resources of their own below it.
        Role::Consumer => {
            let consumers: Vec<_> = arns.iter().map(|arn| format!("{arn}/consumer/*")).collect();
            statements.push(allow(
                "TributaryFanOut",
                &["kinesis:SubscribeToShard", "kinesis:DescribeStreamConsumer"],
                json!(consumers),
            ));
        }
        // It names no stream, so it cannot be narrowed to some.
        Role::Operator => statements.push(allow("TributaryList", &["kinesis:ListStreams"], json!("*"))),
    }
    if let (Some(key), Some(action)) = (&place.encryption_key, key_action) {
        statements.push(allow("TributaryKey", &[action], json!(key)));
    }
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// The resource that a message of AWS says was refused; none where it names none.
#[cfg(feature = "kinesis")]
pub(crate) fn refused_resource(message: &str) -> Option<&str> {
    let (_, after) = message.split_once("on resource: ")?;
    after.split_whitespace().next().map(|resource| resource.trim_end_matches([',', '.', ';']))
}

/// The action that a message of AWS says was refused.
#[cfg(feature = "kinesis")]
pub(crate) fn refused_action(message: &str) -> Option<&str> {
    let (_, after) = message.split_once("not authorized to perform: ")?;
    after.split_whitespace().next().map(|action| action.trim_end_matches([',', '.', ';']))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_role_gets_what_it_calls_and_no_more() {
        let streams = [StreamName("shop.events".into()), StreamName("shop.progress".into())];
        let place = Place { region: Some("eu-central-1".into()), account: None, encryption_key: Some("arn:aws:kms:x".into()) };
        let producer = policy(Role::Producer, &streams, &place);
        assert_eq!(
            producer["Statement"][0]["Resource"],
            json!(["arn:aws:kinesis:eu-central-1:*:stream/shop.events", "arn:aws:kinesis:eu-central-1:*:stream/shop.progress"])
        );
        assert_eq!(producer["Statement"][1]["Action"], json!(["kms:GenerateDataKey"]));
        assert!(!producer.to_string().contains("CreateStream"));
        let consumer = policy(Role::Consumer, &streams, &Place::default());
        assert_eq!(consumer["Statement"][1]["Resource"][0], "arn:aws:kinesis:*:*:stream/shop.events/consumer/*");
        assert!(!consumer.to_string().contains("Put") && !consumer.to_string().contains("kms"));
        let operator = policy(Role::Operator, &streams, &place);
        assert_eq!(operator["Statement"][1]["Resource"], "*");
        assert_eq!(operator["Statement"][2]["Action"], json!(["kms:DescribeKey"]));
    }

    #[cfg(feature = "kinesis")]
    #[test]
    fn a_refusal_names_action_and_resource() {
        let message = "User: arn:aws:iam::123456789012:user/shop is not authorized to perform: kinesis:PutRecords on resource: \
             arn:aws:kinesis:eu-central-1:123456789012:stream/shop.events because no identity-based policy allows the kinesis:PutRecords action";
        assert_eq!(refused_action(message), Some("kinesis:PutRecords"));
        assert_eq!(refused_resource(message), Some("arn:aws:kinesis:eu-central-1:123456789012:stream/shop.events"));
        assert_eq!((refused_action("no"), refused_resource("no")), (None, None));
    }
}
