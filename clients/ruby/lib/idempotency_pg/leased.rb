# Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
# work.call(job) says what is known. An answer, { status:, headers:, body:, book: }, is recorded in one transaction with what book.call(db)
# writes; so is Refused, for good. NothingHappened lets the next attempt do it. Any other error: nobody knows, and a person decides.
require 'securerandom'
module IdempotencyPg
  class NothingHappened < StandardError; end
  # What work gets: claim.state, what the request left; effect_key, the same in every attempt; lost, an error once the claim is another's.
  Job = Struct.new(:claim, :effect_key, :lost)

  class << self
    # The Answer of the work, or a Result that says why there is none: the outcome of claim(), or :failed after NothingHappened. If the
    # answer to the claim is lost, the same claim_id gets the same token.
    def run_leased(pool, id, work, wait: nil, step: nil, claim_id: SecureRandom.uuid, **options)
      claimed = capped(pool, wait) { |most| despite_loss { claim(pool, id, wait: most, claim_id: claim_id, **options) } }
      claimed.claimed? ? finish(pool, claimed, step, work) : claimed
    end

    # Drives on, until stop.call is true, what others have left behind: few at a time, because all begin at once.
    def completer(pool, operation, work, lease: nil, step: nil, max_rows: 4, every: 1, stop: -> {}, on_error: method(:warn))
      until stop.call
        begin
          claims = claim_abandoned(pool, operation: operation, lease: lease, max_rows: max_rows)
          claims.map { |one| Thread.new { finish(pool, one, step, work) rescue on_error.call($!) } }.each(&:join)
        rescue StandardError => e
          on_error.call(e) # such as a database that is down: later, then
        end
        sleep every
      end
    end

    private

    def despite_loss(&block) = again(%i[unavailable], 6, &block)

    def finish(pool, claim, step, work)
      job = Job.new(claim, despite_loss { effect_key(pool, claim.id, step) })
      answer = begin
        Answer.of(**beating(pool, job) { work.call(job) or raise 'work has to give an answer' })
      rescue Refused => e
        e.answer
      rescue StandardError => e
        raise job.lost if job.lost # not the owner any more: there is nothing to record
        outcome, verb, why = e.is_a?(NothingHappened) ? %i[failed fail error] : %i[held hold reason]
        settle(pool, claim, verb, why => "#{e.class}: #{e.message}")
        return Result.new(**claim.to_h, outcome: outcome, last_error: e.message)
      end
      record(pool, claim, answer)
    end

    # Three beats to a lease. Who has lost the claim is told; who cannot reach the database goes on and tries at the next beat.
    def beating(pool, job)
      lock, bell, over = Mutex.new, ConditionVariable.new, false
      Thread.new do
        loop do
          break if lock.synchronize { bell.wait(lock, job.claim.lease_seconds / 3) unless over; over }
          extend_lease(pool, job.claim.id, token: job.claim.token)
        rescue StandardError => e
          job.lost ||= e unless over || %i[unavailable retry].include?(kind(e))
        end
      end
      yield
    ensure
      lock.synchronize { (over = true) && bell.signal }
    end

    def record(pool, claim, answer)
      answer.expires_at = despite_loss do
        transaction(pool) do |db|
          # In this order: a repeat of what was committed learns that from complete, and not from a unique key of book's.
          complete(db, claim.id, **answer.recorded, token: claim.token, refuse_repeat: true).tap { answer.book&.call(db) }
        end
      end
      answer
    rescue StandardError => e
      # The answer to COMMIT was lost, or a person was faster: what is recorded is what counts.
      return replay(pool, claim.id) if reason(e) == 'completed'
      # It was done and cannot be recorded. Nobody may do it once more because the lease ends.
      settle(pool, claim, :hold, reason: e.message) unless %i[unavailable stale_claim].include?(kind(e))
      raise
    end

    # What is settled already was so by the call whose answer was lost, or is another's. A page of HTML would be too large for a reason.
    def settle(pool, claim, verb, **why)
      despite_loss { public_send(verb, pool, claim.id, token: claim.token, **why.transform_values { |text| utf8(text)[0, 1000] }) }
    rescue StandardError => e
      raise unless %i[stale_claim not_claimed held].include?(kind(e))
    end
  end
end
