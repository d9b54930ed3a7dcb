//! How much is said, and to whom.

use procession::{Builder, ProcessPool, StartMethod};
use tracing::{Level, debug, error, info, info_span, trace, warn};

use crate::common::{Open, helper, helping, multi_thread};
use crate::recorder::{Recorder, would_say};
use crate::the_event;

both! {
    nothing_is_said_where_nobody_listens,
    the_level_is_the_programs,
    the_level_follows_the_program,
    the_program_decides_about_each_event,
    a_worker_may_have_its_own_subscriber,
    a_task_may_have_its_own_subscriber,
    it_can_be_switched_off,
}

/// In a program of its own, where no other test has ever listened.
async fn nothing_is_said_where_nobody_listens(method: StartMethod) {
    let output = helper("levels::listens_late", &format!("{method:?}")).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("is heard now"), "{output:?}");
}

#[test]
#[ignore = "a program for the test above"]
fn listens_late() {
    let Some(method) = helping() else { return };
    let method = if method == "Spawn" { StartMethod::Spawn } else { StartMethod::ForkServer };
    let builder = ProcessPool::builder().start_method(method).workers(1);
    multi_thread().block_on(async {
        let pool = builder.open().unwrap();
        let would = || would_say(Level::ERROR) || tracing::dispatcher::has_been_set();
        assert!(!pool.submit(would, ()).await.unwrap());
        // Once somebody does, the same worker says something.
        let (recorder, _guard) = Recorder::set();
        pool.submit(|| info!("now"), ()).await.unwrap();
        the_event(&recorder, "now");
        pool.shutdown().await;
        println!("it is heard now");
    });
}

async fn the_level_is_the_programs(builder: Builder) {
    fn task() -> [bool; 3] {
        error!("an error");
        info!("an info");
        debug!("a debug");
        [Level::ERROR, Level::INFO, Level::DEBUG].map(would_say)
    }
    let (recorder, _guard) = Recorder::set();
    recorder.hear_up_to(3);
    let pool = builder.workers(1).open().unwrap();
    assert_eq!(pool.submit(task, ()).await.unwrap(), [true, true, false]);
    assert_eq!(recorder.messages(), ["an error", "an info"]);
    pool.shutdown().await;
}

async fn the_level_follows_the_program(builder: Builder) {
    fn task(name: String) -> bool {
        warn!("{name} warning");
        trace!("{name} trace");
        would_say(Level::TRACE)
    }
    let (recorder, _guard) = Recorder::set();
    recorder.hear_up_to(2);
    let pool = builder.workers(1).open().unwrap();
    assert!(!pool.submit(task, "first".to_string()).await.unwrap());
    recorder.hear_up_to(5);
    assert!(pool.submit(task, "second".to_string()).await.unwrap());
    recorder.hear_up_to(0);
    assert!(!pool.submit(task, "third".to_string()).await.unwrap());
    recorder.hear_up_to(2);
    assert!(!pool.submit(task, "fourth".to_string()).await.unwrap());
    assert_eq!(recorder.messages(), ["first warning", "second warning", "second trace", "fourth warning"]);
    pool.shutdown().await;
}

async fn the_program_decides_about_each_event(builder: Builder) {
    fn task() {
        info!(target: "unwanted", "not this");
        // Nor this span, but what is in it.
        info_span!(target: "unwanted", "unwanted").in_scope(|| {
            info_span!("wanted").in_scope(|| info!("but this"));
        });
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    info_span!("request").in_scope(|| pool.submit(task, ())).await.unwrap();
    assert_eq!(recorder.messages(), ["but this"]);
    assert_eq!(the_event(&recorder, "but this").path, ["request", "wanted"]);
    recorder.expect_all_closed();
    pool.shutdown().await;
}

/// The subscriber that a worker has set for itself.
static OWN: std::sync::OnceLock<Recorder> = std::sync::OnceLock::new();

async fn a_worker_may_have_its_own_subscriber(builder: Builder) {
    fn initializer() {
        info!("early");
        let recorder = OWN.get_or_init(Recorder::default).clone();
        tracing::subscriber::set_global_default(recorder).unwrap();
    }
    fn task() -> Vec<String> {
        debug!("in a task");
        OWN.get().unwrap().messages()
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.workers(1).initializer(initializer, ()).open().unwrap();
    assert_eq!(pool.submit(task, ()).await.unwrap(), ["in a task"]);
    recorder.hear_up_to(3);
    assert_eq!(pool.submit(task, ()).await.unwrap(), ["in a task"; 2]);
    pool.shutdown().await;
    not_with_agents!("what is no task's is told to the agent's program");
    assert_eq!(recorder.messages(), ["early"]);
}

async fn a_task_may_have_its_own_subscriber(builder: Builder) {
    fn task() -> Vec<String> {
        info!("before");
        let own = Recorder::default();
        tracing::subscriber::with_default(own.clone(), || info!("within"));
        info!("after");
        own.messages()
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.open().unwrap();
    assert_eq!(pool.submit(task, ()).await.unwrap(), ["within"]);
    assert_eq!(recorder.messages(), ["before", "after"]);
    pool.shutdown().await;
}

async fn it_can_be_switched_off(builder: Builder) {
    fn task() -> bool {
        info!("unheard");
        tracing::subscriber::set_global_default(Recorder::default()).is_ok()
    }
    let (recorder, _guard) = Recorder::set();
    let pool = builder.forward_events(false).initializer(|| info!("unheard"), ()).open().unwrap();
    let request = info_span!("request");
    assert!(request.in_scope(|| pool.submit(task, ())).await.unwrap());
    assert!(recorder.messages().is_empty());
    pool.shutdown().await;
}
