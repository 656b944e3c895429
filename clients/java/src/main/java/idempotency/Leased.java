package idempotency;

import static idempotency.Idempotency.*;
import static idempotency.Idempotency.Arg.*;

import java.util.*;
import java.util.concurrent.*;
import java.util.function.*;

/**
 * Work that leaves the database: the claim is committed first, with a lease ("2 min"), and what became of the work is recorded afterwards.
 * The effect says by its end what is known. An Answer, a refusal such as 402 as well, is recorded in one transaction with what its book
 * writes. NothingHappened lets the next attempt do it. Whatever else is thrown means that nobody knows, and the key is held for a person.
 */
public record Leased(Database db, String step, String lease, Effect effect) {
    public interface Effect { Answer of(Job job) throws Exception; }
    /** The effect key is for the outside party: the same in every attempt. */
    public record Job(Claimed claim, String effectKey) {}
    public static final class NothingHappened extends Exception { public NothingHappened(String message) { super(message); } }

    /** Claims and does the work: Answered by it, or why not. */
    public Claim run(Id id, Request request, Option... options) throws Exception {
        // If the answer to the claim is lost, the same claim_id gets the same token.
        Option[] all = Option.join(options, LEASE.of(lease), CLAIM_ID.of(UUID.randomUUID()));
        Claim claim = db.capped(all, allowed -> db.despiteLoss(c -> claim(c, id, request, allowed)));
        return claim instanceof Claimed mine ? finish(mine) : claim;
    }

    /** Drives on, until it is stopped, what others have left behind: one after the other, so run it in several threads for more. */
    public void completer(String operation, BooleanSupplier stopped, Consumer<Exception> report) throws InterruptedException {
        while (!stopped.getAsBoolean()) {
            List<Claimed> found = List.of();
            try {
                found = db.transaction(c -> claimAbandoned(c, OPERATION.of(operation), LEASE.of(lease), MAX_ROWS.of(1)));
                for (Claimed claim : found) finish(claim);
            } catch (Exception e) { report.accept(e); } // such as a database that is down: later, then
            if (found.isEmpty()) Thread.sleep(1000);
        }
    }

    private Claim finish(Claimed claim) throws Exception {
        Id id = claim.id();
        Option token = TOKEN.of(claim.token());
        Job job = new Job(claim, db.despiteLoss(c -> EFFECT_KEY.on(c, id, STEP.of(step))));
        Answer answer;
        try { answer = beating(job, token); } catch (ExecutionException e) { return settle(id, token, e.getCause()); }
        try {
            return db.despiteLoss(c -> {
                Answered done = new Answered(answer, complete(c, id, answer, token, REFUSE_REPEAT.of(true)), false);
                if (answer.book() != null) answer.book().in(c); // after what refuses the repeat, lest a unique key does, with another error
                return done;
            });
        } catch (Exception e) {
            // The answer to COMMIT was lost, or a person was faster: what is recorded is what counts.
            if (Kind.reason(e).filter("completed"::equals).isPresent()) return db.despiteLoss(c -> replay(c, id)).orElseThrow(() -> e);
            // It was done and cannot be recorded. Nobody may do it once more because the lease ends.
            if (!Kind.of(e).in(Kind.UNAVAILABLE, Kind.STALE_CLAIM)) settle(id, token, e);
            throw e;
        }
    }

    /** The work in a thread of its own, while this one renews the lease, three times in its length. */
    private Answer beating(Job job, Option token) throws Exception {
        FutureTask<Answer> work = new FutureTask<>(() -> Objects.requireNonNull(effect.of(job), "the work gave no answer"));
        new Thread(work, "idempotency " + job.claim.id().operation()).start();
        while (true) {
            try { return work.get(Math.max(1, job.claim.leaseMs() / 3), TimeUnit.MILLISECONDS); } catch (TimeoutException e) { /* beat */ }
            try { db.transaction(c -> EXTEND.on(c, job.claim.id(), token)); } catch (Exception e) {
                if (Kind.of(e).in(Kind.UNAVAILABLE, Kind.RETRY) || work.isDone()) continue; // at the next beat, then
                work.cancel(true);
                throw e; // not the owner any more: there is nothing to record
            }
        }
    }

    private Claim settle(Id id, Option token, Throwable thrown) throws Exception {
        boolean nothing = thrown instanceof NothingHappened;
        String why = String.valueOf(nothing ? thrown.getMessage() : thrown).replace('\0', '?'); // as text that can be recorded
        String said = why.substring(0, Math.min(why.length(), 1000));
        try {
            db.despiteLoss(c -> nothing ? FAIL.on(c, id, ERROR.of(said), token) : HOLD.on(c, id, REASON.of(said), token));
        } catch (Exception e) {
            // What a repeat finds settled was settled by the call whose answer was lost, or is somebody else's by now.
            if (!Kind.of(e).in(Kind.STALE_CLAIM, Kind.NOT_CLAIMED, Kind.HELD)) throw e;
        }
        return nothing ? new Failed(said) : new Held(said);
    }
}
