//! Looks at every call of the SDK: counts and traces it, says what failed, and gives each API its own budget.

use aws_smithy_runtime::client::retries::RetryPartition;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
    FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};
use tokio::time::Instant;
use tracing::Span;

use crate::operator::{metrics, traces};

/// The interceptor.
#[derive(Debug, Default)]
pub(super) struct Observer;

/// One call under way.
#[derive(Debug)]
struct Call {
    start: Instant,
    attempt: Instant,
    attempts: u32,
    /// Disabled where no traces are sent.
    span: Span,
}

impl Storable for Call {
    type Storer = StoreReplace<Self>;
}

fn names(cfg: &ConfigBag) -> (String, String) {
    cfg.load::<Metadata>()
        .map_or_else(Default::default, |m| (m.service().to_owned(), m.name().to_owned()))
}

/// The status of the answer; `0` without one.
fn status(context: &FinalizerInterceptorContextRef<'_>) -> String {
    context.response().map_or(0, |r| r.status().as_u16()).to_string()
}

impl Intercept for Observer {
    fn name(&self) -> &'static str {
        "karpenter"
    }

    // Not `read_before_execution`: a client's interceptors run it before the operation has a name.
    fn read_before_serialization(
        &self,
        _context: &BeforeSerializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let (service, action) = names(cfg);
        let now = Instant::now();
        // A throttled API must not slow the others down.
        let partition = RetryPartition::new(format!("{service}/{action}"));
        let state = cfg.interceptor_state();
        state.store_put(partition);
        let span = traces::call(&service, &action);
        state.store_put(Call { start: now, attempt: now, attempts: 0, span });
        Ok(())
    }

    fn read_before_attempt(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let now = Instant::now();
        let call = match cfg.load::<Call>() {
            Some(c) => Call {
                start: c.start,
                attempt: now,
                attempts: c.attempts + 1,
                span: c.span.clone(),
            },
            None => Call { start: now, attempt: now, attempts: 1, span: Span::none() },
        };
        cfg.interceptor_state().store_put(call);
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let (service, action) = names(cfg);
        let code = status(context);
        let labels = [service.as_str(), action.as_str(), code.as_str()];
        metrics::AWS_ATTEMPTS.with_label_values(&labels).inc();
        if let Some(call) = cfg.load::<Call>() {
            let time = call.attempt.elapsed().as_secs_f64();
            metrics::AWS_ATTEMPT_DURATION.with_label_values(&labels).observe(time);
        }
        Ok(())
    }

    fn read_after_execution(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let (service, action) = names(cfg);
        let code = status(context);
        let labels = [service.as_str(), action.as_str(), code.as_str()];
        metrics::AWS_REQUESTS.with_label_values(&labels).inc();
        if let Some(call) = cfg.load::<Call>() {
            let retries = call.attempts.saturating_sub(1);
            let failed = context.output_or_error().is_none_or(|o| o.is_err());
            traces::called(&call.span, &code, retries, failed);
            metrics::AWS_REQUEST_RETRIES.with_label_values(&labels).observe(f64::from(retries));
            let time = call.start.elapsed().as_secs_f64();
            metrics::AWS_REQUEST_DURATION.with_label_values(&labels).observe(time);
            if retries > 0 {
                tracing::debug!(
                    "aws-service-name" = service,
                    "aws-operation-name" = action,
                    "aws-status-code" = code,
                    "retries" = retries,
                    "duration" = crate::operator::logging::go_duration(call.start.elapsed()),
                    "an AWS call needed retries"
                );
            }
        }
        Ok(())
    }
}
