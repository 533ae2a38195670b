//! An SNS topic with an SQS queue subscribed to it, in ministack; not tested against AWS.

use aws_sdk_sns::Client;
use sinks::sns::{SnsConfig, SnsSink};
use sinks::test_support::Ministack;

use super::subscriber::Subscriber;
use super::*;

pub(super) struct Topic {
    stack: Ministack,
    sdk: aws_config::SdkConfig,
    fifo: bool,
    name: String,
    topic_arn: String,
    queue_url: String,
    subscriber: Subscriber,
}

impl Topic {
    pub(super) async fn start(fifo: bool) -> Self {
        let stack = Ministack::start();
        let sdk = stack.sdk_config().await;
        let (name, topic_arn, queue_url) = (String::new(), String::new(), String::new());
        Self { stack, sdk, fifo, name, topic_arn, queue_url, subscriber: Subscriber::default() }
    }

    async fn set_up(&mut self) {
        let name = format!("{}{}", self.name, if self.fifo { ".fifo" } else { "" });
        let sns = Client::new(&self.sdk);
        let mut create = sns.create_topic().name(&name);
        if self.fifo {
            create = create.attributes("FifoTopic", "true");
        }
        self.topic_arn = create.send().await.unwrap().topic_arn.unwrap();
        let url = queue::create(&self.stack, &name, self.fifo).await;
        let wanted = json!({"QueueUrl": url, "AttributeNames": ["QueueArn"]});
        let arn =
            self.stack.call("AmazonSQS.GetQueueAttributes", &wanted).await["Attributes"]["QueueArn"].as_str().unwrap().to_owned();
        let subscribe = sns.subscribe().topic_arn(&self.topic_arn).protocol("sqs").endpoint(arn);
        subscribe.attributes("RawMessageDelivery", "true").send().await.unwrap();
        self.queue_url = url;
    }
}

#[async_trait::async_trait]
impl Target for Topic {
    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.name);
        self.subscriber.clear();
        self.set_up().await;
    }

    async fn sink(&self) -> Box<dyn Sink> {
        Box::new(SnsSink::with_sdk_config(SnsConfig::new(&self.topic_arn), &self.sdk))
    }

    async fn held(&self) -> Held {
        queue::receive(&self.stack, &self.queue_url, &self.subscriber).await;
        self.subscriber.held()
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
