//! Kinesis streams that are split and merged while they are archived, as kinesis-local has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use archive::{Fused, verify};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::types::ScalingType;
use aws_smithy_http_client::tls::{Provider as TlsProvider, rustls_provider::CryptoMode};
use objects::Objects;
use schemas::progress::{ShardPositions, StreamName};
use streams::kinesis::Kinesis;
use streams::test_support::KinesisLocal;
use streams::{Layout, Provider};

use crate::support::{LIMIT, Shop, Working, contents, lsn, open};

fn client(endpoint: &str) -> Client {
    let tls = TlsProvider::Rustls(CryptoMode::AwsLc);
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("t", "t", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().tls_provider(tls).build_https());
    Client::from_conf(config.build())
}

/// Each shard's parents.
async fn lineage(client: &Client, stream: &StreamName) -> Vec<(String, Vec<String>)> {
    let answer = client.list_shards().stream_name(&stream.0).send().await.unwrap();
    let parents = |shard: &aws_sdk_kinesis::types::Shard| {
        [shard.parent_shard_id(), shard.adjacent_parent_shard_id()].into_iter().flatten().map(str::to_owned).collect()
    };
    answer.shards().iter().map(|shard| (shard.shard_id().to_owned(), parents(shard))).collect()
}

#[tokio::test]
async fn reshards_are_archived_and_read_parents_first() {
    let directory = tempfile::tempdir().unwrap();
    let local = KinesisLocal::start(directory.path()).unwrap();
    let provider: Arc<dyn Provider> = Arc::new(Kinesis::connect(local.options()).await.unwrap());
    let mut shop = Shop::new(provider.clone(), Layout::Shared).await;
    let stream = shop.streams()[0].clone();
    let operator = client(&local.endpoint());
    let objects = Objects::memory();
    shop.snapshot(40).await;
    let working = Working::start(&objects, &provider, 4000).await;
    for shards in [6, 3] {
        shop.tick(40).await;
        let request = operator.update_shard_count().stream_name(&stream.0).target_shard_count(shards);
        request.scaling_type(ScalingType::UniformScaling).send().await.unwrap();
        for _ in 0..3 {
            shop.tick(30).await;
        }
    }
    working.until(&objects, lsn(shop.frontier)).await;
    working.stop().await.unwrap();
    assert!(verify(&open(&objects).await).await.unwrap().is_sound());

    let fused = Fused::new(open(&objects).await, provider.clone());
    let none = ShardPositions::new();
    let live = contents(&shop, &*provider, &none).await;
    assert_eq!(contents(&shop, &fused, &none).await, live);
    let mut reader = fused.reader(&stream, &Default::default()).await.unwrap();
    let total: usize = live[&stream].values().map(Vec::len).sum();
    let (mut read, mut seen) = (0, BTreeMap::new());
    while read < total {
        let batch = tokio::time::timeout(LIMIT, reader.next()).await.unwrap().unwrap();
        let (first, last) = seen.entry(batch.shard.0.clone()).or_insert((read, read));
        *first = (*first).min(read);
        *last = read;
        read += batch.records.len();
    }
    let lineage = lineage(&operator, &stream).await;
    assert!(lineage.iter().filter(|(_, parents)| !parents.is_empty()).count() > 3, "{lineage:?}");
    for (shard, parents) in &lineage {
        for (parent, child) in parents.iter().filter_map(|parent| Some((seen.get(parent)?, seen.get(shard)?))) {
            assert!(parent.1 < child.0, "{shard} was read before its parent's end");
        }
    }
}
