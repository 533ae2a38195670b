//! A process that dies at every step: of an upload, of what is removed after it, of a restore.

use checkpoints::{Retention, is_empty, settle};

use crate::store::{World, facts, folder, generation, read, write};

const KEEP_ONE: Retention = Retention { keep: 1, keep_ms: i64::MAX };

#[tokio::test]
async fn a_checkpoint_is_there_whole_or_not_at_all_wherever_its_process_dies() {
    let (mut old, mut new) = (0, 0);
    for answer_lost in [false, true] {
        for last in 0.. {
            let world = World::default();
            let mut first = world.checkpoints().take_over(1).await.unwrap();
            first.save(folder(4).path(), facts(), None, 1).await.unwrap();

            let (dying, steps) = world.dying(last, answer_lost);
            let made = async {
                let mut writer = dying.take_over(2).await?;
                let made = writer.save(folder(6).path(), facts(), Some("six"), 2).await;
                writer.expire(KEEP_ONE, 2).await?;
                made
            };
            let made = made.await.is_ok();
            let over = steps.begun() <= last;

            let latest = world.latest().await;
            let restored = world.restored(&latest).await;
            let is_new = restored == generation(6);
            assert!(is_new || restored == generation(4), "step {last}: neither the one nor the other");
            assert!(is_new || !made, "step {last}: it was made, and is not there");
            (old, new) = (old + u32::from(!is_new), new + u32::from(is_new));

            // Whoever comes next goes on, and cleans up.
            let mut next = world.checkpoints().take_over(3).await.unwrap();
            next.save(folder(7).path(), facts(), None, 3).await.unwrap();
            next.expire(KEEP_ONE, 3).await.unwrap();
            assert_eq!(world.restored(&world.latest().await).await, generation(7));
            world.holds_only_what_is_named().await;
            if over {
                break;
            }
        }
    }
    assert!(old > 20 && new > 10, "{old} {new}");
}

#[tokio::test]
async fn a_process_for_which_a_step_fails_goes_on_and_is_not_superseded_by_itself() {
    for answer_lost in [false, true] {
        for at in 0.. {
            let world = World::default();
            let (stumbling, steps) = world.stumbling(at, answer_lost);
            let mut failed = 0;
            let mut writer = match stumbling.take_over(1).await {
                Ok(writer) => writer,
                Err(_) => stumbling.take_over(2).await.unwrap(),
            };
            for n in 4..=6 {
                // Tried again later: with another folder, at another time.
                let made = match writer.save(folder(n).path(), facts(), None, 10 * i64::from(n)).await {
                    Ok(made) => made,
                    Err(error) => {
                        failed += 1;
                        assert_eq!(error.class(), schemas::ErrorClass::Transient, "{error}");
                        writer.save(folder(n + 10).path(), facts(), None, 10 * i64::from(n) + 1).await.unwrap()
                    }
                };
                assert_eq!(world.latest().await.number, made.number);
                if writer.expire(KEEP_ONE, 1).await.is_err() {
                    writer.expire(KEEP_ONE, 1).await.unwrap();
                }
            }
            let restored = world.restored(&world.latest().await).await;
            assert!(restored == generation(6) || restored == generation(16), "step {at}");
            world.holds_only_what_is_named().await;
            assert!(failed <= 1);
            if steps.begun() <= at {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_restore_is_whole_or_not_at_all_wherever_its_process_dies() {
    let world = World::default();
    let mut writer = world.checkpoints().take_over(1).await.unwrap();
    writer.save(folder(6).path(), facts(), None, 1).await.unwrap();
    let latest = world.latest().await;
    for before in [None, Some(generation(2))] {
        for last in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let state = directory.path().join("state");
            if let Some(before) = &before {
                write(before, &state.join("db"));
            }
            let (dying, steps) = world.dying(last, false);
            if dying.restore(&latest, &state).await.is_ok() {
                assert!(steps.begun() <= last && last > 5);
                break;
            }
            match &before {
                Some(before) => assert_eq!(read(&state.join("db")), *before),
                None => assert!(is_empty(&state).unwrap()),
            }
            settle(&state).unwrap();
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), usize::from(before.is_some()), "something is left");
            world.checkpoints().restore(&latest, &state).await.unwrap();
            assert_eq!(read(&state.join("db")), generation(6));
        }
    }
}

#[test]
fn what_a_kill_between_renames_left_is_settled() {
    let (old, new) = (generation(1), generation(5));
    // What is there, by its place beside the state; and what the state is then.
    for (places, expected) in [
        (vec![("state", &old), ("state.restoring", &new)], Some(&old)),
        (vec![("state.restoring", &new)], None),
        (vec![("state.replaced", &old), ("state.restoring", &new)], Some(&new)),
        (vec![("state.replaced", &old), ("state", &new)], Some(&new)),
        (vec![("state", &old)], Some(&old)),
        (vec![], None),
    ] {
        let directory = tempfile::tempdir().unwrap();
        for (place, files) in &places {
            write(files, &directory.path().join(place));
        }
        let state = directory.path().join("state");
        settle(&state).unwrap();
        match expected {
            Some(files) => assert_eq!(read(&state), *files, "{places:?}"),
            None => assert!(is_empty(&state).unwrap(), "{places:?}"),
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), usize::from(expected.is_some()));
    }
}
