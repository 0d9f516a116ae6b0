//! Asks the verifier, once for everybody who waits for the same answer.
//!
//! An answer counts only for connections made before the question was asked. So whoever comes
//! while a question is out waits for the next one; a thousand released clients cost two or three
//! questions, not a thousand.

use crate::{VERIFY_TIMEOUT, Verifier};
use sempre_model::{Generation, MemberId};
use std::{collections::HashMap, sync::Arc};
use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinSet},
};

/// Requests on their way to the asking task; whoever finds it full waits.
const QUEUE: usize = 256;

type Key = (MemberId, Generation);

struct Request {
    key: Key,
    answer: oneshot::Sender<bool>,
}

#[derive(Clone)]
pub(crate) struct Gate {
    requests: mpsc::Sender<Request>,
}

impl Gate {
    /// Its task ends when the last clone is dropped.
    pub fn start(verifier: Arc<dyn Verifier>) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        tokio::spawn(Asker::new(verifier).run(queue));
        Self { requests }
    }

    /// Call it with the connection already made.
    pub async fn verify(&self, member: &MemberId, generation: Generation) -> bool {
        let (answer, answered) = oneshot::channel();
        let request = Request { key: (member.clone(), generation), answer };
        self.requests.send(request).await.is_ok() && answered.await.unwrap_or(false)
    }
}

struct Asker {
    verifier: Arc<dyn Verifier>,
    asking: JoinSet<bool>,
    keys: HashMap<Id, Key>,
    /// Who waits for the question that is out.
    asked: HashMap<Key, Vec<oneshot::Sender<bool>>>,
    /// Who came later. Bounded by the router's number of connections.
    next: HashMap<Key, Vec<oneshot::Sender<bool>>>,
}

impl Asker {
    fn new(verifier: Arc<dyn Verifier>) -> Self {
        Self {
            verifier,
            asking: JoinSet::new(),
            keys: HashMap::new(),
            asked: HashMap::new(),
            next: HashMap::new(),
        }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        loop {
            tokio::select! {
                request = queue.recv() => match request {
                    Some(request) if self.asked.contains_key(&request.key) => {
                        self.next.entry(request.key).or_default().push(request.answer);
                    }
                    Some(request) => self.ask(request.key, vec![request.answer]),
                    None => return,
                },
                Some(done) = self.asking.join_next_with_id() => match done {
                    Ok((id, holds)) => self.answer(id, holds),
                    // The verifier panicked: that is not a yes.
                    Err(error) => self.answer(error.id(), false),
                },
            }
        }
    }

    fn ask(&mut self, key: Key, waiting: Vec<oneshot::Sender<bool>>) {
        let verifier = self.verifier.clone();
        let (member, generation) = key.clone();
        let task = self.asking.spawn(async move {
            let answer = verifier.verify(&member, generation);
            tokio::time::timeout(VERIFY_TIMEOUT, answer).await.unwrap_or(false)
        });
        self.keys.insert(task.id(), key.clone());
        self.asked.insert(key, waiting);
    }

    fn answer(&mut self, id: Id, holds: bool) {
        let Some(key) = self.keys.remove(&id) else { return };
        for waiting in self.asked.remove(&key).unwrap_or_default() {
            // An error means that the client went away meanwhile.
            let _ = waiting.send(holds);
        }
        if let Some(waiting) = self.next.remove(&key) {
            self.ask(key, waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use tokio::sync::Semaphore;

    struct Slow {
        questions: AtomicUsize,
        allowed: Semaphore,
    }

    #[async_trait::async_trait]
    impl Verifier for Slow {
        async fn verify(&self, _: &MemberId, generation: Generation) -> bool {
            self.questions.fetch_add(1, SeqCst);
            self.allowed.acquire().await.unwrap().forget();
            assert!(generation.0 != 9, "a verifier that panics");
            true
        }
    }

    #[tokio::test]
    async fn who_comes_during_a_question_waits_for_the_next() {
        let slow = Arc::new(Slow { questions: AtomicUsize::new(0), allowed: Semaphore::new(0) });
        let gate = Gate::start(slow.clone());
        let member = MemberId::new("a").unwrap();
        let ask = |generation: u64| {
            let (gate, member) = (gate.clone(), member.clone());
            tokio::spawn(async move { gate.verify(&member, Generation(generation)).await })
        };
        let first = ask(1);
        while slow.questions.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let later: Vec<_> = (0..50).map(|_| ask(1)).collect();
        slow.allowed.add_permits(1);
        assert!(first.await.unwrap());
        slow.allowed.add_permits(100);
        for one in later {
            assert!(one.await.unwrap());
        }
        let questions = slow.questions.load(SeqCst);
        assert!((2..51).contains(&questions), "{questions}");
        assert!(!ask(9).await.unwrap());
        assert!(ask(2).await.unwrap(), "it goes on after a panic");
    }
}
