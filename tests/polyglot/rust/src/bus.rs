use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::*;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use prost::Message;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::contracts::postbus::bus::v1::reply::Result as Answered;
use crate::contracts::postbus::bus::v1::{Code, Control, Error, Outcome, Reply, Request};

pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The connection of a service to the broker, with a queue for the replies to its calls.
///
/// It does not reconnect: the program ends with its connection, and its supervisor starts it again.
pub struct Bus {
    pub service: String,
    pub connection: Connection,
    calls: Channel,
    reply_to: String,
    waiting: Mutex<HashMap<String, oneshot::Sender<Reply>>>,
}

pub fn failure(code: Code, reason: &str, message: &str) -> Error {
    Error {
        code: code.into(),
        reason: reason.into(),
        message: message.into(),
        outcome: Outcome::NoEffect.into(),
        ..Error::default()
    }
}

pub fn first_part(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

impl Bus {
    /// Connects as the service of the account in the URL.
    pub async fn open(url: &str) -> Result<Arc<Self>, Fault> {
        let uri: lapin::uri::AMQPUri = url.parse()?;
        let service = uri.authority.userinfo.username;
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let calls = connection.create_channel().await?;
        calls.confirm_select(ConfirmSelectOptions::default()).await?; // a return comes with its confirm
        let reply_to = format!("{service}.replies.{}", Uuid::new_v4());
        let waiting = Mutex::default();
        let bus = Arc::new(Self { service, connection, calls, reply_to, waiting });
        for kind in ["calls", "replies", "control", "retry", "dead", "events"] {
            let type_ = if kind == "events" { ExchangeKind::Topic } else { ExchangeKind::Direct };
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            bus.calls
                .exchange_declare(bus.exchange(kind).into(), type_, options, FieldTable::default())
                .await?;
        }
        bus.clone().take_replies().await?;
        Ok(bus)
    }

    pub fn exchange(&self, kind: &str) -> String {
        format!("postbus.{kind}.{}", self.service)
    }

    async fn take_replies(self: Arc<Self>) -> Result<(), Fault> {
        let queue = self.reply_to.as_str();
        let channel = self.connection.create_channel().await?;
        exclusive_queue(&channel, queue).await?;
        bind(&channel, queue, &self.exchange("replies"), queue).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut replies =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        let bus = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = replies.next().await {
                bus.take(&delivery);
            }
            std::process::exit(1); // the connection is lost
        });
        Ok(())
    }

    /// Passes a reply to its call. Only the owner of the method may reply.
    fn take(&self, delivery: &Delivery) {
        let id = text(delivery.properties.correlation_id());
        if first_part(&id) != text(delivery.properties.user_id()) {
            return;
        }
        if let (Ok(reply), Some(call)) = (Reply::decode(&*delivery.data), self.remove(&id)) {
            let _ = call.send(reply); // the caller may have stopped waiting
        }
    }

    fn remove(&self, id: &str) -> Option<oneshot::Sender<Reply>> {
        self.waiting.lock().expect("no panic with the lock").remove(id)
    }

    /// Calls a method and returns its response, or the error in its reply.
    pub async fn call<T: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        deadline: Instant,
    ) -> Result<T, Error> {
        let callee = method.split('.').nth(1).unwrap_or_default();
        let id = format!("{callee}.{}", Uuid::new_v4()); // its service alone may reply
        let (sender, reply) = oneshot::channel();
        self.waiting.lock().expect("no panic with the lock").insert(id.clone(), sender);
        let mut cancel = Cancel { bus: self, callee, method, id: &id, armed: true };
        let body = self.request(request.encode_to_vec(), deadline);
        self.publish_call(callee, method, &id, &body, deadline).await?;
        let Ok(Ok(reply)) = tokio::time::timeout_at(deadline.into(), reply).await else {
            return Err(failure(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "No reply in time."));
        };
        cancel.armed = false;
        match reply.result {
            Some(Answered::Error(error)) => Err(error),
            Some(Answered::Payload(payload)) => T::decode(&*payload).map_err(|_| malformed()),
            _ => Err(malformed()),
        }
    }

    fn request(&self, payload: Vec<u8>, deadline: Instant) -> Vec<u8> {
        let budget = milliseconds_until(deadline);
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let request = Request {
            payload,
            operation_id: Uuid::new_v4().to_string(), // for a repetition: that of the first call
            budget_ms: budget,
            deadline_unix_ms: (now + Duration::from_millis(budget.into())).as_millis() as i64, // for the previous release
            ..Request::default()
        };
        request.encode_to_vec()
    }

    async fn publish_call(
        &self,
        callee: &str,
        method: &str,
        id: &str,
        body: &[u8],
        deadline: Instant,
    ) -> Result<(), Error> {
        let exchange = format!("postbus.calls.{callee}");
        let properties = self
            .properties()
            .with_reply_to(self.reply_to.as_str().into())
            .with_correlation_id(id.into())
            .with_expiration(milliseconds_until(deadline).to_string().into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let published = async {
            self.calls
                .basic_publish(exchange.into(), method.into(), options, body, properties)
                .await?
                .await
        };
        if let Ok(confirm) = published.await
            && confirm.take_message().is_none()
        {
            return Ok(());
        }
        Err(failure(Code::Unavailable, "NO_ROUTE", "No worker serves the method."))
    }

    pub fn properties(&self) -> BasicProperties {
        BasicProperties::default()
            .with_content_type("application/x-protobuf".into())
            .with_user_id(self.service.as_str().into())
    }
}

/// Cancels a call that is dropped before its reply, or has no reply at its deadline.
struct Cancel<'a> {
    bus: &'a Bus,
    callee: &'a str,
    method: &'a str,
    id: &'a str,
    armed: bool,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        self.bus.remove(self.id);
        if !self.armed {
            return;
        }
        let reply_to = self.bus.reply_to.clone();
        let control = Control {
            reply_to,
            correlation_id: self.id.into(),
            cancel: true,
            ..Default::default()
        };
        let (channel, properties) = (self.bus.calls.clone(), self.bus.properties());
        let exchange = format!("postbus.control.{}", self.callee);
        let method = self.method.to_owned();
        tokio::spawn(async move {
            let (options, body) = (BasicPublishOptions::default(), control.encode_to_vec());
            let _ = channel
                .basic_publish(exchange.into(), method.into(), options, &body, properties)
                .await; // best effort
        });
    }
}

pub async fn exclusive_queue(channel: &Channel, name: &str) -> Result<(), Fault> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(name.into(), options, FieldTable::default()).await?;
    Ok(())
}

pub async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), Fault> {
    let options = QueueBindOptions::default();
    channel
        .queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default())
        .await?;
    Ok(())
}

pub fn text(property: &Option<lapin::types::ShortString>) -> String {
    property.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn milliseconds_until(deadline: Instant) -> u32 {
    deadline.saturating_duration_since(Instant::now()).as_millis().max(1) as u32
}

fn malformed() -> Error {
    failure(Code::Internal, "INTERNAL", "The reply is malformed.")
}
