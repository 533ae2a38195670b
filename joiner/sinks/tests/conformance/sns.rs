//! An SNS topic with an SQS queue subscribed to it, in ministack; not tested against AWS.

use std::sync::Mutex;

use aws_sdk_sns::Client;
use sinks::sns::{SnsConfig, SnsSink};
use sinks::test_support::Ministack;

use super::*;

pub(super) struct Topic {
    stack: Ministack,
    sdk: aws_config::SdkConfig,
    fifo: bool,
    name: String,
    topic_arn: String,
    queue_url: String,
    /// What the subscriber holds: the highest version of each key, tombstones too.
    subscriber: Mutex<BTreeMap<String, (Lsn, Option<Value>)>>,
}

impl Topic {
    pub(super) async fn start(fifo: bool) -> Self {
        let stack = Ministack::start();
        let sdk = stack.sdk_config().await;
        let (name, topic_arn, queue_url) = (String::new(), String::new(), String::new());
        Self { stack, sdk, fifo, name, topic_arn, queue_url, subscriber: Mutex::default() }
    }

    async fn set_up(&mut self) {
        let suffix = if self.fifo { ".fifo" } else { "" };
        let sns = Client::new(&self.sdk);
        let mut create = sns.create_topic().name(format!("{}{suffix}", self.name));
        let mut attributes = json!({});
        if self.fifo {
            create = create.attributes("FifoTopic", "true");
            attributes = json!({"FifoQueue": "true"});
        }
        self.topic_arn = create.send().await.unwrap().topic_arn.unwrap();
        let queue = json!({"QueueName": format!("{}{suffix}", self.name), "Attributes": attributes});
        let url = self.stack.call("AmazonSQS.CreateQueue", &queue).await["QueueUrl"].as_str().unwrap().to_owned();
        let wanted = json!({"QueueUrl": url, "AttributeNames": ["QueueArn"]});
        let arn =
            self.stack.call("AmazonSQS.GetQueueAttributes", &wanted).await["Attributes"]["QueueArn"].as_str().unwrap().to_owned();
        let subscribe = sns.subscribe().topic_arn(&self.topic_arn).protocol("sqs").endpoint(arn);
        subscribe.attributes("RawMessageDelivery", "true").send().await.unwrap();
        self.queue_url = url;
    }

    fn keep(&self, event: &Value, version: Lsn) {
        let mut subscriber = self.subscriber.lock().unwrap();
        let held = subscriber.entry(event["subject"].as_str().unwrap().to_owned()).or_insert((Lsn::ZERO, None));
        if version > held.0 {
            *held = (version, event.get("data").cloned());
        }
    }

    /// Takes in everything that is in the queue.
    async fn receive(&self) {
        loop {
            let wanted = json!({"QueueUrl": self.queue_url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]});
            let answer = self.stack.call("AmazonSQS.ReceiveMessage", &wanted).await;
            let Some(messages) = answer["Messages"].as_array().filter(|messages| !messages.is_empty()) else { return };
            for message in messages {
                let event: Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
                assert_eq!(event["specversion"], "1.0");
                let attribute = |name: &str| message["MessageAttributes"][name]["StringValue"].as_str().unwrap().to_owned();
                assert_eq!(attribute("entity"), event["entity"]);
                assert_eq!(attribute("key"), event["entitykey"]);
                assert_eq!(attribute("op"), if event.get("data").is_some() { "upserted" } else { "deleted" });
                let version: Lsn = event["lsn"].as_str().unwrap().parse().unwrap();
                self.keep(&event, version);
                let handle = json!({"QueueUrl": self.queue_url, "ReceiptHandle": message["ReceiptHandle"]});
                self.stack.call("AmazonSQS.DeleteMessage", &handle).await;
            }
        }
    }
}

#[async_trait::async_trait]
impl Target for Topic {
    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.name);
        self.subscriber.lock().unwrap().clear();
        self.set_up().await;
    }

    async fn sink(&self) -> Box<dyn Sink> {
        Box::new(SnsSink::with_sdk_config(SnsConfig::new(&self.topic_arn), &self.sdk))
    }

    async fn held(&self) -> Held {
        self.receive().await;
        let subscriber = self.subscriber.lock().unwrap();
        subscriber.iter().filter_map(|(key, (version, document))| Some((key.clone(), (*version, document.clone()?)))).collect()
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        None
    }

    async fn down(&mut self) {
        self.stack.down();
    }

    async fn up(&mut self) {
        self.stack.up();
        self.set_up().await;
    }

    fn tells_vanished(&self) -> bool {
        false
    }

    fn survives_down(&self) -> bool {
        false
    }
}
