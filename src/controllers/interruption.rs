//! What AWS announces about instances is acted upon before it happens: `interruption` reads the
//! queue, `interruption.instancestatus` asks EC2 itself.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::{Message as Received, MessageSystemAttributeName};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Context, Error, runner};
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::errors::AwsError;
use crate::cloud::aws::permissions::{self, Feature};
use crate::operator::metrics;

mod action;
mod message;
mod status;

/// Messages that are asked for, and worked on, at once.
const MESSAGES: i32 = 10;
/// A poll waits this long for a message, in seconds.
const WAIT: i32 = 20;
/// A message that was not handled is seen again after this long, in seconds.
const VISIBILITY: i32 = 20;

/// Starts both controllers; the queue's only where one is named.
pub fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    status::start(ctx, aws, tasks);
    if ctx.settings.interruption_queue.is_empty() {
        return;
    }
    let queue = Queue { ctx: Arc::clone(ctx), aws: Arc::clone(aws), url: Mutex::default() };
    let queue = Arc::new(queue);
    runner::singleton(
        tasks,
        "interruption",
        ctx,
        |_, _| false,
        move || {
            let queue = Arc::clone(&queue);
            async move {
                Ok(Some(if queue.poll().await? { Duration::ZERO } else { permissions::RETRY }))
            }
        },
    );
}

/// The error of a queue that cannot be used: it names the queue, and the setting that names it.
fn unusable(name: &str, error: &AwsError) -> Error {
    let hint = if error.is_not_found() {
        ", expected the name of an SQS queue of the controller's account and region"
    } else {
        ""
    };
    Error::Other(format!("interruption-queue (INTERRUPTION_QUEUE) {name:?}{hint}: {error}"))
}

struct Queue {
    ctx: Arc<Context>,
    aws: Arc<AwsProvider>,
    /// Where the queue is, once that is known.
    url: Mutex<Option<String>>,
}

impl Queue {
    /// Reads and handles messages; false when the policy does not allow that.
    async fn poll(&self) -> Result<bool, Error> {
        let name = &self.ctx.settings.interruption_queue;
        let allowed = &self.aws.permissions;
        let mut url = self.url.lock().clone();
        if url.is_none() {
            let found = allowed.ask(Feature::Interruptions, self.find(name)).await;
            let Some(found) = found.map_err(|e| unusable(name, &e))? else {
                return Ok(false);
            };
            tracing::debug!("queue" = name, "watching interruption queue");
            *self.url.lock() = Some(found.clone());
            url = Some(found);
        }
        let queue = url.as_deref().unwrap_or_default();
        let received = match allowed.ask(Feature::Interruptions, self.receive(queue)).await {
            Err(error) if error.is_not_found() => {
                // Made again, it may be somewhere else.
                *self.url.lock() = None;
                return Err(unusable(name, &error));
            }
            other => other?,
        };
        let Some(received) = received else { return Ok(false) };
        join_all(received.iter().map(|message| self.handle(queue, message))).await;
        Ok(true)
    }

    async fn find(&self, name: &str) -> Result<String, AwsError> {
        let answer = self.aws.clients.sqs.get_queue_url().queue_name(name).send().await;
        let answer = answer.map_err(|e| AwsError::new("GetQueueUrl", &e))?;
        Ok(answer.queue_url.unwrap_or_default())
    }

    async fn receive(&self, queue: &str) -> Result<Vec<Received>, AwsError> {
        let request = self.aws.clients.sqs.receive_message().queue_url(queue);
        let request = request
            .max_number_of_messages(MESSAGES)
            .wait_time_seconds(WAIT)
            .visibility_timeout(VISIBILITY)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .message_attribute_names("All");
        let answer = request.send().await.map_err(|e| AwsError::new("ReceiveMessage", &e))?;
        Ok(answer.messages.unwrap_or_default())
    }

    /// Acts on a message and takes it off the queue; one that could not be acted on comes again.
    async fn handle(&self, queue: &str, received: &Received) {
        let message = match message::parse(received.body().unwrap_or_default()) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!("error" = error, "failed parsing interruption message");
                return self.delete(queue, received).await;
            }
        };
        metrics::INTERRUPTION_RECEIVED.with_label_values(&[message.kind.name()]).inc();
        for id in &message.instances {
            if let Err(error) = action::take(&self.ctx, &self.aws, message.kind, id).await {
                log_failure!(error, "failed handling interruption message");
                return;
            }
        }
        if let Some(time) = message.time {
            let age = self.ctx.clock.now().duration_since(time).as_secs_f64().max(0.0);
            metrics::INTERRUPTION_LATENCY.with_label_values::<&str>(&[]).observe(age);
        }
        self.delete(queue, received).await;
    }

    async fn delete(&self, queue: &str, received: &Received) {
        let request = self.aws.clients.sqs.delete_message().queue_url(queue);
        let request = request.receipt_handle(received.receipt_handle().unwrap_or_default());
        match request.send().await.map_err(|e| AwsError::new("DeleteMessage", &e)) {
            Ok(_) => metrics::INTERRUPTION_DELETED.with_label_values::<&str>(&[]).inc(),
            Err(error) => log_failure!(Error::from(error), "failed deleting interruption message"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_queue_is_named_with_the_setting_that_names_it() {
        let error =
            |code| AwsError::local("GetQueueUrl", code, "The specified queue does not exist");
        let text =
            unusable("quueue", &error("AWS.SimpleQueueService.NonExistentQueue")).to_string();
        for part in ["INTERRUPTION_QUEUE", "\"quueue\"", "expected the name", "does not exist"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!unusable("q", &error("InternalError")).to_string().contains("expected"));
    }
}
