package program;

import postbus.bus.v1.ErrorOuterClass.Code;
import postbus.bus.v1.ErrorOuterClass.Error;
import postbus.bus.v1.ErrorOuterClass.Outcome;

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
