//! What is uploaded, what is kept, what is restored, what is refused.

use checkpoints::{Error, Retention, Which};

use crate::store::{World, facts, folder, generation};

const FOREVER: i64 = i64::MAX;

#[tokio::test]
async fn only_new_files_are_uploaded_and_old_checkpoints_expire() {
    let world = World::default();
    let mut writer = world.checkpoints().take_over(1).await.unwrap();
    let mut uploaded = Vec::new();
    for n in 1..=6 {
        let made = writer.save(folder(n).path(), facts(), None, 1000 * i64::from(n)).await.unwrap();
        uploaded.push(made.uploaded_bytes);
        let new: u64 = generation(n)
            .iter()
            .filter(|(name, data)| n == 1 || generation(n - 1).get(*name) != Some(data))
            .map(|(_, data)| data.len() as u64)
            .sum();
        assert_eq!(made.uploaded_bytes, new, "generation {n}");
        writer.expire(Retention { keep: 2, keep_ms: FOREVER }, 1000 * i64::from(n)).await.unwrap();
        world.holds_only_what_is_named().await;
    }
    assert!(uploaded[5] * 3 < uploaded[0] * 2 && uploaded[5] > 0, "{uploaded:?}");
    let listed: Vec<u64> = world.checkpoints().list().await.unwrap().iter().map(|listed| listed.number).collect();
    assert_eq!(listed, [6, 7]);
    for (number, n) in [(6, 5), (7, 6)] {
        let manifest = world.checkpoints().expected(&Which::Number(number)).await.unwrap();
        assert_eq!(world.restored(&manifest).await, generation(n));
    }
    // The newest stays, however old it is.
    writer.expire(Retention { keep: 2, keep_ms: 10 }, 1_000_000).await.unwrap();
    assert_eq!(world.checkpoints().list().await.unwrap().len(), 1);
    assert_eq!(world.restored(&world.latest().await).await, generation(6));
    world.holds_only_what_is_named().await;
}

#[tokio::test]
async fn savepoints_are_kept_until_they_are_dropped() {
    let world = World::default();
    let checkpoints = world.checkpoints();
    let retention = Retention { keep: 1, keep_ms: FOREVER };
    let mut writer = checkpoints.take_over(1).await.unwrap();
    writer.save(folder(1).path(), facts(), Some("before"), 1).await.unwrap();
    for n in 2..=6 {
        writer.save(folder(n).path(), facts(), None, 1).await.unwrap();
        writer.expire(retention, 1).await.unwrap();
    }
    let manifest = checkpoints.expected(&"before".parse().unwrap()).await.unwrap();
    assert_eq!(world.restored(&manifest).await, generation(1));
    let names: Vec<Vec<String>> = checkpoints.list().await.unwrap().into_iter().map(|listed| listed.names).collect();
    assert_eq!(names, [vec!["before".to_owned()], vec![]]);
    let twice = writer.save(folder(7).path(), facts(), Some("before"), 1).await.unwrap_err();
    assert!(matches!(twice, Error::Exists { .. }), "{twice}");
    assert!(matches!(writer.save(folder(7).path(), facts(), Some("a/b"), 1).await, Err(Error::BadName { .. })));
    assert!(checkpoints.drop_savepoint("before").await.unwrap() && !checkpoints.drop_savepoint("before").await.unwrap());
    writer.expire(retention, 1).await.unwrap();
    assert_eq!(checkpoints.find(&Which::Number(manifest.number)).await.unwrap(), None);
    world.holds_only_what_is_named().await;
    let gone = checkpoints.expected(&Which::Named("before".into())).await.unwrap_err();
    assert!(gone.to_string().contains("no checkpoint \"before\""), "{gone}");
}

#[tokio::test]
async fn what_was_changed_or_removed_is_told_and_the_state_stays() {
    let world = World::default();
    let mut writer = world.checkpoints().take_over(1).await.unwrap();
    writer.save(folder(4).path(), facts(), None, 1).await.unwrap();
    let latest = world.latest().await;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    crate::store::write(&generation(1), &state);
    let part =
        objects::ObjectPath::from(world.names("files").await.into_iter().find(|name| name.contains("000003.sst")).unwrap());
    let whole = world.objects().get(&part).await.unwrap().unwrap();
    let mut flipped = whole.to_vec();
    flipped[7] ^= 1;
    for (data, told) in [(Some(flipped), "checksum"), (Some(whole[1..].to_vec()), "bytes"), (None, "it is gone")] {
        match data {
            Some(data) => world.objects().put(&part, data.into()).await.unwrap(),
            None => world.objects().remove([part.clone()]).await.unwrap(),
        }
        let error = world.checkpoints().restore(&latest, &state).await.unwrap_err();
        assert!(error.to_string().contains(told) && error.to_string().contains("savepoint list"), "{error}");
        assert_eq!(crate::store::read(&state), generation(1));
    }
    world.objects().put(&part, whole).await.unwrap();
    world.checkpoints().restore(&latest, &state).await.unwrap();
    assert_eq!(crate::store::read(&state.join("db")), generation(4));
}

#[tokio::test]
async fn another_pipelines_checkpoints_and_unknown_formats_are_refused() {
    let world = World::default();
    let mut writer = world.checkpoints().take_over(1).await.unwrap();
    writer.save(folder(1).path(), facts(), None, 1).await.unwrap();
    let other = checkpoints::Checkpoints::open(world.objects(), "billing");
    for error in [other.take_over(1).await.unwrap_err(), other.find(&Which::Latest).await.unwrap_err()] {
        assert!(matches!(error, Error::OtherPipeline { .. }), "{error}");
    }
    let header = objects::ObjectPath::from("checkpoints.json");
    world.objects().put(&header, r#"{"tributary_joiner_checkpoints": 2, "source": "shop"}"#.into()).await.unwrap();
    let error = world.checkpoints().find(&Which::Latest).await.unwrap_err();
    assert!(matches!(error, Error::Format { found: 2, .. }), "{error}");
}
