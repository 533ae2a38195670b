//! A scripted service.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use tokio::net::TcpListener;

/// A service that gives one answer after the other, the last for ever, and keeps what it was asked.
pub(crate) struct Script {
    pub(crate) url: String,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Script {
    pub(crate) async fn start(content_type: &'static str, mut answers: Vec<(u16, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        answers.reverse();
        let answers = Arc::new(Mutex::new(answers));
        let answer = move |request: String| async move {
            kept.lock().unwrap().push(request);
            let mut answers = answers.lock().unwrap();
            let (status, body) = if answers.len() > 1 { answers.pop().unwrap() } else { answers[0].clone() };
            (StatusCode::from_u16(status).unwrap(), [(CONTENT_TYPE, content_type)], body)
        };
        let task = tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
        Self { url, asked, task }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.task.abort();
    }
}
