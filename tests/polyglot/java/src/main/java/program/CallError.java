package program;

import postbus.bus.v1.Code;
import postbus.bus.v1.Error;
import postbus.bus.v1.Outcome;

/** The error in a reply. */
final class CallError extends Exception {
  final transient Error error;

  CallError(Error error) {
    super(error.getReason() + ": " + error.getMessage());
    this.error = error;
  }

  static CallError of(Code code, String reason, String message) {
    var error = Error.newBuilder().setCode(code).setReason(reason).setMessage(message);
    return new CallError(error.setOutcome(Outcome.OUTCOME_NO_EFFECT).build());
  }
}
