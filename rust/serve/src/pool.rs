//! Threads that come when they are needed, up to a number, and go when they are not.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;
/// Lives a thread's life around the work it is given.
type Life = dyn Fn(&mut (dyn FnMut() + Send)) + Send + Sync;

/// A thread's stack: memory is only taken as far as it is used.
const STACK: usize = 1 << 20;
/// How long a thread waits for work before it ends, if there are more than KEPT.
const IDLE: Duration = Duration::from_secs(10);
const KEPT: usize = 8;

/// A pool. Work is done in the order in which it comes, at once as long as there are fewer than the most threads.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    life: Box<Life>,
    most: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    starting: bool,
    closed: bool,
}

impl Pool {
    pub fn new(most: usize, life: Box<Life>) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), life, most }) }
    }

    /// Have something done. Never waits.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.shared.wake.notify_one();
        } else {
            self.shared.grow(state);
        }
    }

    /// Let the threads end once they have done what there is.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }

    #[cfg(test)]
    fn threads(&self) -> usize {
        self.shared.lock().threads
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Start another thread, unless one is starting: that one sees to it once it runs, if it is still needed then. So a burst of
    /// short work takes few threads, and work that blocks gets as many as it needs.
    fn grow(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.starting || state.threads >= self.most {
            return;
        }
        state.starting = true;
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(self);
        let life = move || {
            (shared.life)(&mut || {
                shared.lock().starting = false;
                shared.work();
            });
        };
        if thread::Builder::new().name("serve".into()).stack_size(STACK).spawn(life).is_err() {
            let mut state = self.lock(); // there are others, or it waits until there are
            state.starting = false;
            state.threads -= 1;
        }
    }

    fn work(self: &Arc<Self>) {
        let mut state = self.lock();
        loop {
            while let Some(job) = state.jobs.pop_front() {
                if state.jobs.len() > state.idle {
                    self.grow(state);
                } else {
                    drop(state);
                }
                _ = catch_unwind(AssertUnwindSafe(job)); // whoever waits for it finds that it never answers
                state = self.lock();
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (next, waited) = self.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() && state.threads > KEPT {
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Of a machine with much else to do.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn pool(most: usize) -> Pool {
        Pool::new(most, Box::new(|work: &mut (dyn FnMut() + Send)| work()))
    }

    #[test]
    fn work_that_blocks_keeps_no_other_from_being_done() {
        let pool = pool(100);
        let gate = Arc::new(std::sync::Barrier::new(21));
        for _ in 0..20 {
            let gate = Arc::clone(&gate);
            pool.run(move || _ = gate.wait());
        }
        let (done, all) = mpsc::channel();
        pool.run(move || _ = done.send(()));
        all.recv_timeout(PATIENCE).expect("one thread is free");
        // One that has begun and taken nothing yet is not counted on: another may have been started for the same work.
        assert!((21..25).contains(&pool.threads()));
        gate.wait();
    }

    #[test]
    fn a_burst_of_short_work_takes_few_threads() {
        let pool = pool(1000);
        let (done, all) = mpsc::channel();
        for _ in 0..1000 {
            let done = done.clone();
            pool.run(move || _ = done.send(()));
        }
        for _ in 0..1000 {
            all.recv_timeout(PATIENCE).expect("done");
        }
        assert!(pool.threads() < 500);
    }

    #[test]
    fn there_are_never_more_threads_than_the_most_and_all_is_done() {
        let pool = pool(3);
        let (done, all) = mpsc::channel();
        for number in 0..100 {
            let done = done.clone();
            pool.run(move || _ = done.send(number));
            assert!(pool.threads() <= 3);
        }
        let mut numbers: Vec<_> = (0..100).map(|_| all.recv_timeout(PATIENCE).expect("done")).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..100));
    }

    #[test]
    fn a_closed_pool_ends_its_threads() {
        let pool = pool(5);
        let (done, all) = mpsc::channel();
        pool.run(move || _ = done.send(()));
        all.recv_timeout(PATIENCE).expect("done");
        pool.close();
        while pool.threads() > 0 {
            thread::yield_now();
        }
    }
}
