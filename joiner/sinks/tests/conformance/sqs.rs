//! An SQS queue in ministack; not tested against AWS.

use sinks::sqs::{SqsConfig, SqsSink};
use sinks::test_support::Ministack;

use super::subscriber::Subscriber;
use super::*;

pub(super) struct Queue {
    stack: Ministack,
    sdk: aws_config::SdkConfig,
    fifo: bool,
    name: String,
    url: String,
    subscriber: Subscriber,
}

impl Queue {
    pub(super) async fn start(fifo: bool) -> Self {
        let stack = Ministack::start();
        let sdk = stack.sdk_config().await;
        Self { stack, sdk, fifo, name: String::new(), url: String::new(), subscriber: Subscriber::default() }
    }
}

#[async_trait::async_trait]
impl Target for Queue {
    async fn fresh(&mut self, case: &str) {
        // A queue's name ends at 80 characters.
        self.name = format!("{:.60}{}", case, if self.fifo { ".fifo" } else { "" });
        self.subscriber.clear();
        self.url = queue::create(&self.stack, &self.name, self.fifo).await;
    }

    async fn sink(&self) -> Box<dyn Sink> {
        Box::new(SqsSink::with_sdk_config(SqsConfig::new(&self.url), &self.sdk))
    }

    async fn held(&self) -> Held {
        queue::receive(&self.stack, &self.url, &self.subscriber).await;
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
        self.url = queue::create(&self.stack, &self.name, self.fifo).await;
    }

    fn tells_vanished(&self) -> bool {
        false
    }

    fn survives_down(&self) -> bool {
        false
    }
}
