# Work that leaves the database: what is recorded of it, when a claim's answer is lost, when the claim is, and when its owner dies.
require 'database'

class LeasedTest < Minitest::Test
  include Database

  OPTIONS = { request: { item: 1 }, lease: '1 min' }.freeze
  NEVER = ->(_) { raise NotImplementedError, 'must not be done' }

  def run_leased(id, work, pool: POOL, **options) = I.run_leased(pool, id, work, **OPTIONS, **options)

  def test_an_answer_is_recorded_with_what_it_books_once
    id, keys = new_id('POST /charges'), []
    work = lambda do |job|
      keys << job.effect_key
      { status: 201, body: { charged: job.claim.state['amount'] }, book: ->(db) { insert(db, 80) } }
    end
    first = run_leased(id, work, step: 'charge', state: { amount: 5 })
    assert_equal([201, '{"charged":5}'], [first.status, first.body])
    assert_operator(first.expires_at, :>, Time.now)
    second = run_leased(id, work, step: 'charge')
    assert_equal([:replay, '{"charged":5}', 1], [second.outcome, second.response_body, count(80)])
    assert_equal([I.effect_key(POOL, id, 'charge')], keys)
  end

  def test_what_work_throws_decides
    id = new_id
    assert_equal(:failed, run_leased(id, ->(_) { raise I::NothingHappened, 'not sent' }).outcome)
    again = run_leased(id, ->(job) { { body: [job.claim.attempt, job.claim.last_error] } })
    assert_equal('[2,"IdempotencyPg::NothingHappened: not sent"]', again.body, 'the next attempt does it')

    refused = run_leased(id = new_id, ->(_) { raise I::Refused.new(status: 402, body: { declined: true }) })
    assert_equal([402, 402], [refused.status, I.replay(POOL, id).response_status], 'for good')

    ["no answer \0\xFF", 'x' * (5 << 20)].each do |message| # such as no text column takes
      assert_equal(:held, run_leased(id = new_id, ->(_) { raise message }).outcome)
      assert_equal(['held', "RuntimeError: #{message[0, 5]}"], [run_leased(id, NEVER).outcome.to_s, I.lookup(POOL, id).last_error[0, 19]])
    end
    assert_equal(:held, run_leased(new_id, ->(_) {}).outcome, 'no answer')
  end

  def test_done_and_not_to_be_recorded_is_held_and_nothing_is_booked
    [{ body: 'x' * (5 << 20), book: ->(db) { insert(db, 81) } }, { book: ->(db) { insert(db, 81) && db.exec('SELECT 1/0') } }].each do |answer|
      id = new_id
      assert_includes(%w[54000 22012], I.sqlstate(raised { run_leased(id, ->(_) { answer }) }))
      assert_equal('held', I.lookup(POOL, id).status)
    end
    assert_equal(0, count(81))
  end

  def test_a_heartbeat_keeps_the_lease_and_tells_work_that_has_lost_its_claim
    id = new_id
    error = raised do
      I.run_leased(POOL, id, lambda { |job|
        wait_until('a heartbeat') { I.lookup(POOL, id).locked_until > job.claim.locked_until }
        WATCH.exec_params('SELECT idempotency.forget($1, $2, $3, force => true)', id.to_a)
        wait_until('a heartbeat that is refused') { job.lost }
        raise 'stopped'
      }, request: [1], lease: '600 ms')
    end
    assert_equal(:stale_claim, I.kind(error))
    assert_nil(I.lookup(POOL, id), 'a late owner records nothing')
  end

  def test_an_answer_that_a_person_has_recorded_meanwhile_is_the_one_that_counts
    id = new_id
    result = run_leased(id, lambda { |job|
      I.complete(POOL, id, status: 201, body: 'by hand', token: job.claim.token)
      { status: 201, body: 'by the machine', book: ->(db) { insert(db, 82) } }
    })
    assert_equal([:replay, 'by hand', 0], [result.outcome, result.response_body, count(82)])
  end

  def test_a_claim_whose_answer_is_lost_is_repeated_with_its_claim_id
    runs, proxy = 0, Proxy.new(lose: 'claimed')
    answer = run_leased(new_id, ->(job) { { body: [runs += 1, job.claim.attempt] } }, pool: proxy.pool(2))
    assert_equal(['[1,1]', ['claimed']], [answer.body, proxy.lost])
  ensure
    proxy.close
  end

  def test_the_completer_drives_on_what_others_left_from_its_state_and_survives_the_loss_of_its_database
    operation = "POST /abandoned-#{SecureRandom.uuid}"
    ids = [83, 84].each { |item| I.claim(POOL, new_id(operation), request: [item], lease: '1 ms', state: { item: item }) }
    over, errors = false, []
    work = ->(job) { { status: 201, book: ->(db) { insert(db, job.claim.state['item']) } } }
    options = { lease: '1 min', every: 0.05, stop: -> { over }, on_error: errors.method(:<<) }
    gone = Thread.new { I.completer(Database.pool(1, host: '127.0.0.1', port: 1), operation, NEVER, **options) }
    wait_until('two attempts without a database') { errors.size >= 2 }
    assert_equal([:unavailable], errors.map { |error| I.kind(error) }.uniq)
    errors.clear
    running = Thread.new { I.completer(POOL, operation, work, **options, on_error: method(:flunk)) }
    wait_until('both are done') { ids.all? { |item| count(item) == 1 } }
    over = true
    [gone, running].each(&:join)
  end
end
