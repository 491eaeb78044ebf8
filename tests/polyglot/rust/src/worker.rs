use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_lite::StreamExt;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable};
use prost::Message;
use tokio::task::AbortHandle;
use uuid::Uuid;

use crate::bus::{Bus, Fault, bind, exclusive_queue, failure, first_part, text};
use crate::contracts::postbus::bus::v1::reply::Result as Answered;
use crate::contracts::postbus::bus::v1::{
    Batch, Code, Control, Error, Event, Outcome, Reply, Request,
};

type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, Error>> + Send>>;

/// Returns the encoded response to an encoded request, until the deadline.
pub type Handler = Arc<dyn Fn(Vec<u8>, Instant) -> Answer + Send + Sync>;

/// Serves methods of its service.
struct Worker {
    bus: Arc<Bus>,
    channel: Channel,
    controls: String,
    running: Mutex<HashMap<String, AbortHandle>>, // by reply-to and correlation id
}

/// Serves each method by its handler, until the connection is lost.
pub async fn serve(bus: Arc<Bus>, handlers: Vec<(String, Handler)>) -> Result<(), Fault> {
    let channel = bus.connection.create_channel().await?;
    channel.basic_qos(64, BasicQosOptions::default()).await?;
    let controls = format!("{}.control.{}", bus.service, Uuid::new_v4());
    let worker = Arc::new(Worker { bus, channel, controls, running: Mutex::default() });
    worker.clone().take_controls(&handlers).await?; // bound before the first call
    for (method, handler) in handlers {
        worker.clone().serve(&method, handler).await?;
    }
    Ok(())
}

impl Worker {
    async fn take_controls(self: Arc<Self>, handlers: &[(String, Handler)]) -> Result<(), Fault> {
        let (channel, queue) = (&self.channel, self.controls.as_str());
        exclusive_queue(channel, queue).await?;
        let exchange = self.bus.exchange("control");
        bind(channel, queue, &exchange, queue).await?;
        for (method, _) in handlers {
            bind(channel, queue, &exchange, method).await?;
        }
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut messages =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        let worker = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                worker.control(&message);
            }
        });
        Ok(())
    }

    /// Cancels a call. Probes need no answer, and there are no streams that need credit.
    fn control(&self, message: &Delivery) {
        let Ok(control) = Control::decode(&*message.data) else { return };
        if control.cancel && first_part(&control.reply_to) == text(message.properties.user_id()) {
            let key = format!("{} {}", control.reply_to, control.correlation_id);
            if let Some(call) = self.running().get(&key) {
                call.abort();
            }
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, AbortHandle>> {
        self.running.lock().expect("no panic with the lock")
    }

    /// Shares the queue of the method with all other processes that serve it.
    async fn serve(self: Arc<Self>, method: &str, handler: Handler) -> Result<(), Fault> {
        let (channel, queue) = (&self.channel, format!("{}.{method}", self.bus.service));
        let options = QueueDeclareOptions { auto_delete: true, ..Default::default() };
        let arguments = table([("x-expires", AMQPValue::LongInt(1000))]);
        channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        bind(channel, &queue, &self.bus.exchange("retry"), method).await?;
        let mut calls = channel
            .basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        for key in [method, &format!("{method}/batch")] {
            bind(channel, &queue, &self.bus.exchange("calls"), key).await?;
        }
        let worker = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(call)) = calls.next().await {
                tokio::spawn(worker.clone().answer(call, handler.clone()));
            }
        });
        Ok(())
    }

    /// Replies to a call, or to each call of a batch, and acknowledges it after the last reply.
    async fn answer(self: Arc<Self>, message: Delivery, handler: Handler) {
        let reply_to = text(message.properties.reply_to());
        let sender = text(message.properties.user_id());
        if sender == first_part(&reply_to) || sender == self.bus.service {
            let calls = calls_of(&message);
            let running: Vec<_> = calls
                .into_iter()
                .map(|(id, body)| {
                    let handling = handle(body, handler.clone());
                    let call = tokio::spawn(self.clone().reply(
                        reply_to.clone(),
                        id.clone(),
                        message.redelivered,
                        handling,
                    ));
                    let key = format!("{reply_to} {id}");
                    self.running().insert(key.clone(), call.abort_handle());
                    (key, call)
                })
                .collect();
            for (key, call) in running {
                let _ = call.await; // an aborted call needs no reply
                self.running().remove(&key);
            }
        }
        let _ = message.ack(BasicAckOptions::default()).await; // else it is delivered again
    }

    async fn reply(
        self: Arc<Self>,
        reply_to: String,
        id: String,
        redelivered: bool,
        handling: impl Future<Output = Result<Vec<u8>, Error>>,
    ) {
        let result = match handling.await {
            Ok(payload) => Answered::Payload(payload),
            Err(mut error) => {
                if redelivered {
                    error.outcome = Outcome::Unknown.into(); // of the first delivery
                }
                Answered::Error(error)
            }
        };
        let body = Reply { result: Some(result), ..Default::default() }.encode_to_vec();
        let exchange = format!("postbus.replies.{}", first_part(&reply_to));
        let properties = self
            .bus
            .properties()
            .with_correlation_id(id.into())
            .with_reply_to(self.controls.as_str().into());
        let options = BasicPublishOptions::default();
        let _ = self
            .channel
            .basic_publish(exchange.into(), reply_to.into(), options, &body, properties)
            .await; // the caller has gone
    }
}

/// Returns correlation id and request of each call in a message; none if it is malformed.
fn calls_of(message: &Delivery) -> Vec<(String, Vec<u8>)> {
    if !message.routing_key.to_string().ends_with("/batch") {
        return vec![(text(message.properties.correlation_id()), message.data.clone())];
    }
    let batch = Batch::decode(&*message.data).unwrap_or_default();
    batch.correlation_ids.into_iter().zip(batch.messages).collect()
}

/// Runs the handler within the budget of the call.
async fn handle(body: Vec<u8>, handler: Handler) -> Result<Vec<u8>, Error> {
    let arrived = Instant::now();
    let Ok(request) = Request::decode(&*body) else {
        return Err(failure(Code::InvalidArgument, "MALFORMED_MESSAGE", "Malformed."));
    };
    let budget = Duration::from_millis(request.budget_ms.min(60_000).into());
    handler(request.payload, arrived + budget).await
}

/// Passes the events of a type, published by its owner, to the handler.
pub async fn consume(
    bus: &Arc<Bus>,
    type_: &str,
    handler: impl Fn(Event) -> Result<(), Fault> + Send + 'static,
) -> Result<(), Fault> {
    let channel = bus.connection.create_channel().await?;
    let queue = format!("{}.{type_}", bus.service);
    let owner = type_.split('.').nth(1).unwrap_or_default().to_owned();
    let (dead, string) = (format!("{queue}.dead"), |text: &str| AMQPValue::LongString(text.into()));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let arguments = table([
        ("x-queue-type", string("quorum")),
        ("x-delivery-limit", AMQPValue::LongInt(i32::MAX)),
        ("x-message-ttl", AMQPValue::LongInt(1_209_600_000)),
    ]);
    channel.queue_declare(dead.as_str().into(), options, arguments).await?;
    bind(&channel, &dead, &bus.exchange("dead"), &queue).await?;
    let arguments = table([
        ("x-queue-type", string("quorum")),
        ("x-dead-letter-strategy", string("at-least-once")),
        ("x-overflow", string("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongInt(10)),
        ("x-dead-letter-exchange", string(&bus.exchange("dead"))),
        ("x-dead-letter-routing-key", string(&queue)),
    ]);
    channel.queue_declare(queue.as_str().into(), options, arguments).await?;
    bind(&channel, &queue, &bus.exchange("retry"), &queue).await?;
    bind(&channel, &queue, &format!("postbus.events.{owner}"), type_).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut events = channel.basic_consume(queue.into(), "".into(), options, arguments).await?;
    let service = bus.service.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = events.next().await {
            let sender = text(message.properties.user_id());
            let genuine = sender == owner || sender == service;
            let handled =
                genuine && Event::decode(&*message.data).is_ok_and(|event| handler(event).is_ok());
            let _ = if handled {
                message.ack(BasicAckOptions::default()).await
            } else {
                let options = BasicRejectOptions { requeue: false };
                message.reject(options).await // to the dead letters
            };
        }
    });
    Ok(())
}

fn table<const N: usize>(arguments: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(name.into(), value);
    }
    table
}
