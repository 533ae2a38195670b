//! A queue in ministack, and a topic that it is subscribed to; what is received of it. Not tested against AWS.

use sinks::sns::{SnsConfig, SnsSink};
use sinks::sqs::{SqsConfig, SqsSink};
use sinks::test_support::Ministack;

use super::subscriber::Subscriber;
use super::*;

/// What the sink sends to.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Service {
    Topic,
    Queue,
}

pub(super) struct Messages {
    stack: Ministack,
    gate: Gate,
    service: Service,
    fifo: bool,
    name: String,
    topic_arn: String,
    queue_url: String,
    subscriber: Subscriber,
}

impl Messages {
    pub(super) async fn start(service: Service, fifo: bool) -> Self {
        let stack = Ministack::start();
        let gate = Gate::before(&stack).await;
        let (name, topic_arn, queue_url) = (String::new(), String::new(), String::new());
        Self { stack, gate, service, fifo, name, topic_arn, queue_url, subscriber: Subscriber::default() }
    }

    async fn sns(&self) -> aws_sdk_sns::Client {
        aws_sdk_sns::Client::new(&self.stack.sdk_config().await)
    }

    async fn make_queue(&mut self) {
        let attributes = if self.fifo { json!({"FifoQueue": "true"}) } else { json!({}) };
        let queue = json!({"QueueName": self.name, "Attributes": attributes});
        self.queue_url = self.stack.call("AmazonSQS.CreateQueue", &queue).await["QueueUrl"].as_str().unwrap().to_owned();
    }

    async fn make_topic(&mut self) {
        let sns = self.sns().await;
        let mut create = sns.create_topic().name(&self.name);
        if self.fifo {
            create = create.attributes("FifoTopic", "true");
        }
        self.topic_arn = create.send().await.unwrap().topic_arn.unwrap();
        let wanted = json!({"QueueUrl": self.queue_url, "AttributeNames": ["QueueArn"]});
        let attributes = self.stack.call("AmazonSQS.GetQueueAttributes", &wanted).await;
        let arn = attributes["Attributes"]["QueueArn"].as_str().unwrap();
        let subscribe = sns.subscribe().topic_arn(&self.topic_arn).protocol("sqs").endpoint(arn);
        subscribe.attributes("RawMessageDelivery", "true").send().await.unwrap();
    }

    /// Takes in everything that is in the queue.
    async fn receive(&self) {
        loop {
            let wanted = json!({"QueueUrl": self.queue_url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]});
            let answer = self.stack.call("AmazonSQS.ReceiveMessage", &wanted).await;
            let Some(messages) = answer["Messages"].as_array().filter(|messages| !messages.is_empty()) else { return };
            for message in messages {
                let event: Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
                let attribute = |name: &str| message["MessageAttributes"][name]["StringValue"].as_str().unwrap().to_owned();
                assert_eq!(attribute("entity"), event["entity"]);
                assert_eq!(attribute("key"), event["entitykey"]);
                assert_eq!(attribute("op"), if event.get("data").is_some() { "upserted" } else { "deleted" });
                self.subscriber.take(&event);
                let handle = json!({"QueueUrl": self.queue_url, "ReceiptHandle": message["ReceiptHandle"]});
                self.stack.call("AmazonSQS.DeleteMessage", &handle).await;
            }
        }
    }
}

#[async_trait::async_trait]
impl Target for Messages {
    async fn fresh(&mut self, case: &str) {
        // A queue's name ends at 80 characters.
        self.name = format!("{case:.60}{}", if self.fifo { ".fifo" } else { "" });
        self.subscriber.clear();
        self.make_queue().await;
        if self.service == Service::Topic {
            self.make_topic().await;
        }
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let sdk = self.gate.sdk_config().await;
        match self.service {
            Service::Topic => Box::new(SnsSink::with_sdk_config(SnsConfig::new(&self.topic_arn), &sdk)),
            Service::Queue => Box::new(SqsSink::with_sdk_config(SqsConfig::new(&self.queue_url), &sdk)),
        }
    }

    async fn held(&self) -> Held {
        self.receive().await;
        self.subscriber.held()
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        None
    }

    fn gate(&self) -> Option<&Gate> {
        Some(&self.gate)
    }

    async fn remove(&mut self) -> bool {
        match self.service {
            Service::Topic => drop(self.sns().await.delete_topic().topic_arn(&self.topic_arn).send().await.unwrap()),
            Service::Queue => self.stack.call_for_nothing("AmazonSQS.DeleteQueue", &json!({"QueueUrl": self.queue_url})).await,
        }
        true
    }

    async fn make(&mut self) {
        match self.service {
            Service::Topic => self.make_topic().await,
            Service::Queue => self.make_queue().await,
        }
    }

    fn tells_vanished(&self) -> bool {
        false
    }
}
