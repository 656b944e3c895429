# The thin client: what is compared, what an outcome and an error are, and what a transaction is worth.
require 'database'

class ClientTest < Minitest::Test
  include Database

  def test_a_repeat_is_replayed_byte_for_byte_and_another_request_is_a_mismatch
    id = completed({ status: 201, headers: [['Link', '</a>'], ['Link', '</b>']], body: '{"order":  1.10}' }, request: { item: 7, n: 1 })
    replay = I.claim(POOL, id, body: '{ "n": 1.0, "item": 7 }')
    assert_equal([:replay, 201, '{"order":  1.10}', [['Link', '</a>'], ['Link', '</b>']], true],
                 replay.to_h.values_at(:outcome, :response_status, :response_body, :response_headers, :fingerprint_checked))
    assert_operator(replay.expires_at, :>, Time.now)
    assert_equal(:mismatch, I.claim(POOL, id, request: { item: 8, n: 1 }).outcome)
    assert_equal(replay.response_body, I.replay(POOL, id).response_body)
    assert_equal('completed', I.lookup(POOL, id).status)
    assert_nil(I.lookup(POOL, new_id))
  end

  def test_a_request_that_is_nil_does_not_switch_the_comparison_off
    [{ request: nil }, { body: nil }, {}, { params: { id: 7 } }].each do |options|
      assert_match(/give body, or request/, raised(ArgumentError) { I.claim(POOL, new_id, **options) }.message)
      assert_match(/give body, or request/, raised(ArgumentError) { I.run(POOL, new_id, 'SELECT 1', **options) }.message)
    end
    assert_equal(:claimed, I.run(POOL, new_id, 'SELECT 1', compare: false).outcome)
  end

  def test_options_are_known_ones_and_json_is_made_once
    assert_match(/unknown option laese/, raised(ArgumentError) { I.claim(POOL, new_id, request: {}, laese: '1 min') }.message)
    raised(ArgumentError) { I.complete(POOL, new_id, 'ttl => NULL); DROP TABLE x; --': 1) }
    raised(ArgumentError) { I.claim(POOL, new_id, request: '{"item": 7}') }
    assert_equal(:replay, I.claim(POOL, completed(request: { item: 7 }), body: '{"item":7}').outcome)
  end

  def test_json_that_jsonb_refuses_is_compared_all_the_same_and_so_are_path_parameters
    ['{"text": "\\u0000"}', '{"text": "\\ud800"}', '{"n": 1e999999}', "caf\xE9", "\0\xFF".b].each do |body|
      id = completed(body: body)
      assert_equal(:replay, I.claim(POOL, id, body: body).outcome)
      assert_equal(:mismatch, I.claim(POOL, id, body: body + ' ').outcome)
    end
    id = completed(body: '{}', params: { id: '7' })
    assert_equal(:replay, I.claim(POOL, id, body: '{ }', params: { id: '7' }).outcome)
    assert_equal(:mismatch, I.claim(POOL, id, body: '{}', params: { id: '8' }).outcome)
  end

  def test_a_token_is_an_integer_beyond_any_float_whatever_the_type_maps_of_the_connection
    typed = PG.connect
    typed.type_map_for_results = PG::BasicTypeMapForResults.new(typed)
    typed.type_map_for_queries = PG::BasicTypeMapForQueries.new(typed)
    [WATCH, typed].each do |db|
      id = new_id
      token = I.claim(db, id, request: [1], lease: '1 min', state: { item: '7' }).token
      assert_kind_of(Integer, token)
      assert_operator(I.extend_lease(db, id, token: token), :>, Time.now)
      assert_operator(I.checkpoint(db, id, 'charged', state: { charge: 'ch_1' }, token: token), :>, Time.now)
      assert_equal({ 'charge' => 'ch_1' }, I.lookup(db, id).state)
      assert_equal(token, I.hold(db, id, reason: 'no answer', token: token))
      assert_equal(:held, I.claim(db, id, request: [1]).outcome)
      assert_equal(:held, I.kind(raised { I.fail(db, id, token: token) }))
      I.complete(db, id, body: "\0\xFF".b, token: token)
      assert_equal("\0\xFF".b, I.replay(db, id).response_bytes)
      again = raised { I.complete(db, id, body: 'x', token: token, refuse_repeat: true) }
      assert_equal([:stale_claim, 'completed'], [I.kind(again), I.reason(again)])
      other = new_id
      assert_equal(true, I.release(db, other, token: I.claim(db, other, request: [1], lease: 60).token))
      assert_equal(true, I.record_failure(db, other, error: 'full'))
      assert_equal(true, I.once(db, new_id('webhook')))
    end
  end

  def test_an_outcome_that_is_ignored_does_not_do_the_work_twice
    id = completed(request: { item: 71 })
    error = raised do
      I.transaction(POOL) do |db|
        I.claim(db, id, request: { item: 71 }) # :replay, and nobody looks
        insert(db, 71)
        I.complete(db, id, body: 'again')
      end
    end
    assert_equal(:not_claimed, I.kind(error))
    assert_equal(0, count(71))
    assert_equal(:left_open, I.kind(raised { I.claim(POOL, new_id, request: [1]) }), 'a claim in autocommit')
  end

  def test_an_answer_that_is_too_large_is_too_large_for_good
    runs = 0
    error = raised do
      I.transaction(POOL) do |db|
        runs += 1
        id = new_id
        I.claim(db, id, request: [1])
        insert(db, 72)
        I.complete(db, id, body: 'x' * (5 << 20))
      end
    end
    assert_equal(['54000', :too_large, 1, 0], [I.sqlstate(error), I.kind(error), runs, count(72)])
  end

  def test_serialization_failures_are_run_again_by_the_outermost_transaction_and_others_are_not
    { '40001' => 3, '40P01' => 3, '54000' => 1 }.each do |state, expected|
      runs = 0
      work = lambda do |db|
        runs += 1
        I.transaction(db) { |inner| inner.exec("DO $$ BEGIN RAISE SQLSTATE '#{state}'; END $$") if runs < 3 }
      end
      expected == 3 ? I.transaction(POOL, &work) : raised(PG::Error) { I.transaction(POOL, &work) }
      assert_equal(expected, runs, state)
    end
  end

  def test_a_transaction_that_ended_on_the_way_is_an_error
    { 'an error was swallowed' => ->(db) { db.exec('SELECT 1/0') }, 'somebody else ended it' => ->(db) { db.exec('ROLLBACK') } }.each do |what, break_it|
      error = raised do
        I.transaction(POOL) do |db|
          insert(db, 73)
          break_it.call(db)
        rescue PG::Error
          # swallowed
        end
      end
      assert_match(/the transaction had failed/, error.message, what)
    end
    catch(:halt) { I.transaction(POOL) { |db| insert(db, 73).then { throw :halt } } }
    Thread.new { I.transaction(POOL) { |db| insert(db, 73).then { Thread.current.kill } } }.join
    assert_equal(0, count(73))
  end

  def test_a_connection_that_was_lost_or_left_busy_is_opened_anew
    one = Database.pool(1)
    lost = raised(PG::Error) { I.transaction(one) { |db| db.exec('SELECT pg_terminate_backend(pg_backend_pid())') } }
    assert_equal(:unavailable, I.kind(lost))
    assert_equal('1', I.transaction(one) { |db| db.exec('SELECT 1').getvalue(0, 0) })
    one.with { |db| db.send_query('SELECT pg_sleep(600)') }
    assert_equal(true, I.once(one, new_id('webhook')))

    way = Proxy.new
    one = way.pool(1)
    I.once(one, new_id('webhook'))
    way.close
    3.times { assert_equal(:unavailable, I.kind(raised(PG::Error) { I.once(one, new_id('webhook')) })) }
    way = Proxy.new(port: way.port)
    assert_equal(true, I.once(one, new_id('webhook')), 'the server is back')
  ensure
    way&.close
  end

  def test_kinds_by_sqlstate_and_what_has_none
    { 'IK003' => :other_completion, 'IK006' => :redacted, '55P03' => :wait_timeout, '22P02' => :bad_request, '25006' => :unavailable,
      '53300' => :unavailable, '08006' => :unavailable, '57P01' => :unavailable, '57014' => :other, '23505' => :other, 'P0001' => :other }
      .each { |state, kind| assert_equal(kind, I.kind(raised { WATCH.exec("DO $$ BEGIN RAISE SQLSTATE '#{state}'; END $$") }), state) }
    assert_equal(:unavailable, I.kind(raised { PG.connect(host: '127.0.0.1', port: 1) }))
    none_left = ConnectionPool.new(size: 1, timeout: 0) { PG.connect }
    none_left.with { assert_equal(:unavailable, Thread.new { I.kind(raised { I.once(none_left, new_id) }) }.value) }
    wrapped = raised(RuntimeError) do
      WATCH.exec("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
    rescue PG::Error
      raise 'as ActiveRecord does'
    end
    assert_equal([:retry, :other, :other], [I.kind(wrapped), I.kind(TypeError.new('a fault')), I.kind(nil)])
  end

  def test_those_that_wait_do_not_fill_the_pool
    id, pool = new_id, Database.pool(5, application_name: 'test_ruby waits')
    token = I.claim(POOL, id, request: [1], lease: '10 min').token
    duplicates = Array.new(50) do
      Thread.new { I.capped(pool, '1 min') { |wait| I.claim(pool, id, request: [1], lease: '10 min', wait: wait) }.outcome }
    end
    waiting = lambda do
      WATCH.exec("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test_ruby waits' AND state = 'active'
        AND query LIKE '%idempotency.claim(%' AND wait_event IS NOT NULL").getvalue(0, 0).to_i
    end
    wait_until('only those that wait are left') { duplicates.count(&:alive?) == 2 && waiting.call == 2 }
    assert_equal(true, I.once(pool, new_id('webhook')), 'others get a connection')
    I.complete(POOL, id, body: 'done', token: token)
    assert_equal({ in_progress: 48, replay: 2 }, duplicates.map(&:value).tally.sort.to_h)
    assert_equal('1 s', I.capped(pool, '1 s', &:itself), 'the places are free again')
  end
end
