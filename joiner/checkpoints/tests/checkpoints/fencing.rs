//! An old process that wakes up, wherever it slept.

use checkpoints::{Error, Retention};

use crate::store::{World, facts, folder, generation};

const KEEP_ONE: Retention = Retention { keep: 1, keep_ms: i64::MAX };

#[tokio::test]
async fn an_old_process_makes_nothing_and_removes_nothing() {
    let world = World::default();
    let mut old = world.checkpoints().take_over(1).await.unwrap();
    old.save(folder(4).path(), facts(), None, 1).await.unwrap();
    let mut new = world.checkpoints().take_over(2).await.unwrap();
    // Before the new one has made anything, and after.
    for n in [6, 7] {
        let error = old.save(folder(9).path(), facts(), None, 2).await.unwrap_err();
        assert!(matches!(error, Error::Superseded { .. }), "{error}");
        let error = old.expire(KEEP_ONE, 2).await.unwrap_err();
        assert!(matches!(error, Error::Superseded { .. }), "{error}");
        assert_eq!(new.save(folder(n).path(), facts(), None, 2).await.unwrap().number, u64::from(n) - 2);
        assert_eq!(world.restored(&world.latest().await).await, generation(n));
    }
    new.expire(KEEP_ONE, 2).await.unwrap();
    // Its numbers have been removed since: it may take one again, and is told all the same.
    let error = old.save(folder(9).path(), facts(), None, 2).await.unwrap_err();
    assert!(matches!(error, Error::Superseded { .. }), "{error}");
    assert_eq!(world.restored(&world.latest().await).await, generation(7));
    new.save(folder(8).path(), facts(), None, 2).await.unwrap();
    new.expire(KEEP_ONE, 2).await.unwrap();
    assert_eq!(world.restored(&world.latest().await).await, generation(8));
    world.holds_only_what_is_named().await;
}

/// The old process falls asleep at a step of removing, after it has looked; the new one takes over and builds on what is there; then the old one goes on.
#[tokio::test]
async fn what_an_old_process_removes_when_it_wakes_is_nothing_that_counts() {
    let mut slept = 0;
    for asleep_after in 0..12 {
        let world = World::default();
        let (sleeping, steps) = world.sleeping();
        let mut old = sleeping.take_over(1).await.unwrap();
        for n in 1..=4 {
            old.save(folder(n).path(), facts(), None, 1).await.unwrap();
        }
        steps.sleep_after(asleep_after);
        let expiring = tokio::spawn(async move { old.expire(KEEP_ONE, 1).await });
        let ended = async {
            while !expiring.is_finished() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = steps.asleep.notified() => slept += 1,
            () = ended => {}
        }
        let mut new = world.checkpoints().take_over(2).await.unwrap();
        new.save(folder(5).path(), facts(), None, 2).await.unwrap();
        steps.wake.close();
        // It is told, or had looked before: what it then removes is what it was about to remove.
        let ended = expiring.await.unwrap();
        assert!(ended.is_ok() || matches!(ended, Err(Error::Superseded { .. })), "{ended:?}");
        assert_eq!(world.restored(&world.latest().await).await, generation(5), "asleep after {asleep_after} steps");
        new.save(folder(6).path(), facts(), None, 2).await.unwrap();
        new.expire(KEEP_ONE, 2).await.unwrap();
        assert_eq!(world.restored(&world.latest().await).await, generation(6));
        world.holds_only_what_is_named().await;
    }
    assert!(slept > 8, "{slept}");
}
