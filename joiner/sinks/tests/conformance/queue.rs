//! An SQS queue in ministack, and what is received from it; not tested against AWS.

use sinks::test_support::Ministack;

use super::subscriber::Subscriber;
use super::*;

/// Makes a queue. Answers its URL.
pub(super) async fn create(stack: &Ministack, name: &str, fifo: bool) -> String {
    let attributes = if fifo { json!({"FifoQueue": "true"}) } else { json!({}) };
    let queue = json!({"QueueName": name, "Attributes": attributes});
    stack.call("AmazonSQS.CreateQueue", &queue).await["QueueUrl"].as_str().unwrap().to_owned()
}

/// Takes in everything that is in the queue.
pub(super) async fn receive(stack: &Ministack, queue_url: &str, subscriber: &Subscriber) {
    loop {
        let wanted = json!({"QueueUrl": queue_url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]});
        let answer = stack.call("AmazonSQS.ReceiveMessage", &wanted).await;
        let Some(messages) = answer["Messages"].as_array().filter(|messages| !messages.is_empty()) else { return };
        for message in messages {
            let event: Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
            let attribute = |name: &str| message["MessageAttributes"][name]["StringValue"].as_str().unwrap().to_owned();
            assert_eq!(attribute("entity"), event["entity"]);
            assert_eq!(attribute("key"), event["entitykey"]);
            assert_eq!(attribute("op"), if event.get("data").is_some() { "upserted" } else { "deleted" });
            subscriber.take(&event);
            let handle = json!({"QueueUrl": queue_url, "ReceiptHandle": message["ReceiptHandle"]});
            stack.call("AmazonSQS.DeleteMessage", &handle).await;
        }
    }
}
