# ActiveRecord: models take part in the claim's transaction, and no connection is kept by work that leaves the database.
require 'database'
require 'active_record'

class ActiveRecordTest < Minitest::Test
  include Database

  ActiveRecord::Base.establish_connection(adapter: 'postgresql', pool: 3, checkout_timeout: 0.1, database: ENV.fetch('PGDATABASE'), min_messages: 'error')
  class Order < ActiveRecord::Base
    self.table_name = 'test_ruby.orders'
  end
  DB = ActiveRecord::Base

  def busy = DB.connection_pool.stat[:busy]

  def test_models_claim_and_answer_are_committed_together_or_not_at_all
    id, runs = new_id, 0
    work = lambda do |db|
      assert_equal(:claimed, I.claim(db, id, request: [1]).outcome)
      Order.transaction { Order.create!(item: 120) }
      Order.connection.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$") if (runs += 1) < 3
      I.complete(db, id, body: { runs: runs })
    end
    raised { I.transaction(DB) { |db| work.call(db) && raise('a fault') } }
    assert_equal([0, nil], [count(120), I.lookup(DB, id)], 'nothing remains')
    runs = 0
    I.transaction(DB, &work)
    assert_equal([1, '{"runs":3}', 0], [count(120), I.replay(DB, id).response_body, busy])
  end

  def test_errors_are_told_apart_below_those_of_active_record
    { '40001' => :retry, '54000' => :too_large, '57P01' => :unavailable, '23505' => :other }.each do |state, kind|
      error = raised(ActiveRecord::StatementInvalid) { Order.connection.execute("DO $$ BEGIN RAISE SQLSTATE '#{state}'; END $$") }
      assert_equal([state, kind], [I.sqlstate(error), I.kind(error)])
    end
    DB.connection_pool.release_connection
    all = Array.new(3) { DB.connection_pool.checkout }
    assert_equal(:unavailable, I.kind(raised { I.once(DB, new_id) }), 'none is left')
  ensure
    all.to_a.each { |connection| DB.connection_pool.checkin(connection) }
  end

  def test_a_transaction_that_was_rolled_back_is_no_success
    [->(_) { raise ActiveRecord::Rollback }, ->(db) { db.exec('SELECT 1/0') rescue nil }].each do |ending|
      assert_match(/rolled back|had failed/, raised(RuntimeError) { I.transaction(DB) { |db| Order.create!(item: 121) && ending.call(db) } }.message)
    end
    assert_equal(0, count(121))
  end

  def test_work_that_leaves_the_database_keeps_no_connection
    book = ->(_) { Order.create!(item: 122) }
    answer = I.run_leased(DB, new_id, ->(_) { { body: [busy], book: book } }, request: [1], lease: '1 min')
    assert_equal(['[0]', 1], [answer.body, count(122)])
    assert_equal('5 s', I.capped(DB, '5 s', &:itself))
  end
end
